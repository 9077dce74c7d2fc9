// Load a network and its sampler.json from model/, and show walks from noise to images.

import { Noise, walk } from './sampler.js'

const $ = (id) => document.getElementById(id)
const CHOICES = ['steps', 'order', 'eta'] // the controls that choose a table of sampler.json
const REMEDY = 'run make try'
let sampler, predict, states = [] // of the walk: {t, x_t, x0_hat}, the two as pictures
let drawing = null // a token of the walk while it is being drawn

function say(text) {
  $('status').textContent = text
}

async function load() {
  say('Loading the network.')
  if (typeof WebAssembly !== 'object') throw Error('This browser has no WebAssembly, which the network runs in.')
  const ort = await import('./vendor/ort.wasm.bundle.min.mjs').catch(() => {
    throw Error(`vendor/ort.wasm.bundle.min.mjs, which runs the network, is missing: ${REMEDY}.`)
  })
  const get = async (name) => {
    const response = await fetch(`model/${name}`, { cache: 'no-cache' }) // which asks whether it has changed
    if (!response.ok) throw Error(`model/${name} is missing: ${REMEDY}.`)
    return response
  }
  sampler = await (await get('sampler.json')).json()
  if (sampler.shape.length !== 3) throw Error('This is a model of points, and the page draws images.')
  ort.env.wasm.numThreads = 1 // more need headers that simple servers do not send
  const session = await ort.InferenceSession.create(new Uint8Array(await (await get('network.onnx')).arrayBuffer()))
  predict = async (x, t, y) => {
    const n = x.length / sampler.shape.reduce((a, b) => a * b)
    const whole = (numbers) => new ort.Tensor('int64', BigInt64Array.from(numbers, BigInt), [n])
    const feeds = { x: new ort.Tensor('float32', x, [n, ...sampler.shape]), t: whole(Array(n).fill(t)) }
    const { out } = await session.run(y ? { ...feeds, y: whole(y) } : feeds)
    return out.data
  }
}

const orderOf = (table) => `${table.order}${table.corrector ? ', corrected' : ''}`
const choicesOf = (table) => ({ steps: String(table.steps), order: orderOf(table), eta: String(table.eta) })
const chosen = () => sampler.tables.find((table) => CHOICES.every((name) => choicesOf(table)[name] === $(name).value))

function fill() {
  for (const name of CHOICES) {
    const values = [...new Set(sampler.tables.map((table) => choicesOf(table)[name]))]
    values.sort((a, b) => parseFloat(a) - parseFloat(b))
    $(name).append(...values.map((value) => new Option(value, value)))
    $(name).value = choicesOf(sampler.tables[0])[name]
  }
  $('label').append(new Option('all in turn', 'all'), ...sampler.class_names.map((name, y) => new Option(name, y)))
  $('guidance').value = sampler.guidance
  document.querySelectorAll('.labels').forEach((each) => (each.hidden = sampler.null_label === null))
}

// Grey out what has no table with the other choices.
function settle() {
  for (const name of CHOICES) {
    const others = CHOICES.filter((other) => other !== name)
    const fitting = sampler.tables.map(choicesOf).filter((of) => others.every((other) => of[other] === $(other).value))
    for (const option of $(name).options) option.disabled = !fitting.some((of) => of[name] === option.value)
  }
}

function command(table, y) {
  const label = $('label').selectedIndex ? sampler.class_names[y[0]] : 'all'
  const quoted = /^[\w.-]+$/.test(label) ? label : `'${label.replaceAll("'", "'\\''")}'`
  return `python main.py --sample --ckpt=CHECKPOINT --weights=${sampler.weights} ${table.flags}` +
    (y ? ` --labels=${quoted} --guidance=${$('guidance').value}` : '') +
    ` --seed=${$('seed').valueAsNumber} --num_images=${$('images').value} --precision=fp32`
}

// Map [-1, 1] to 0..255 as draw/picture.py does, the images side by side with a gap of one pixel.
function picture(x) {
  const [channels, height, width] = sampler.shape, size = channels * height * width
  const n = x.length / size, columns = Math.ceil(Math.sqrt(n))
  const image = new ImageData(columns * (width + 1) - 1, Math.ceil(n / columns) * (height + 1) - 1)
  x.forEach((value, i) => {
    const k = Math.floor(i / size), channel = Math.floor((i % size) / (height * width))
    const row = Math.floor(k / columns) * (height + 1) + Math.floor((i % (height * width)) / width)
    const at = 4 * (row * image.width + (k % columns) * (width + 1) + (i % width))
    const grey = Math.floor(Math.max(0, Math.min(255, (value + 1) * 127.5 + 0.5)))
    for (const c of channels === 1 ? [0, 1, 2] : [channel]) image.data[at + c] = grey
    image.data[at + 3] = 255
  })
  return image
}

function show(position) {
  $('position').value = position
  const { t, ...pictures } = states[position]
  $('where').textContent = `t = ${t} noisings left`
  for (const [id, image] of Object.entries(pictures)) {
    Object.assign($(id), { width: image.width, height: image.height })
    $(id).getContext('2d').putImageData(image, 0, 0)
  }
}

async function draw() {
  const token = (drawing = {}), table = chosen(), began = performance.now()
  const indices = [...Array(Number($('images').value)).keys()]
  const noise = new Noise(BigInt($('seed').valueAsNumber), indices, sampler.shape.reduce((a, b) => a * b))
  const label = $('label').value, all = sampler.null_label
  const y = all === null ? null : indices.map((i) => (label === 'all' ? i % all : Number(label)))
  $('command').textContent = command(table, y)
  $('same').hidden = false
  $('draw').textContent = 'Stop'
  $('progress').max = $('position').max = table.rows.length
  states = []
  for await (const { t, x_t, x0_hat } of walk(predict, sampler, table, noise, y, Number($('guidance').value))) {
    if (drawing !== token) return
    states.push({ t, x_t: picture(x_t), x0_hat: picture(x0_hat) })
    show($('progress').value = states.length - 1)
    say(`Step ${states.length - 1} of ${table.rows.length}`)
    await new Promise((shown) => setTimeout(shown)) // let the browser paint and take clicks
  }
  stop(`Drawn in ${table.rows.length} steps and ${((performance.now() - began) / 1000).toFixed(1)} s.`)
}

function stop(text) {
  drawing = null
  $('position').max = states.length - 1
  $('draw').textContent = 'Draw'
  say(text)
}

load().then(() => {
  fill()
  settle()
  document.querySelector('main').hidden = false
  say('Press Draw.')
  document.querySelector('form').addEventListener('input', settle)
  document.querySelector('form').addEventListener('submit', (event) => {
    event.preventDefault()
    drawing ? stop('Stopped.') : draw().catch((error) => stop(error.message))
  })
  $('position').addEventListener('input', () => states.length && show($('position').value))
}).catch((error) => say(error.message))
