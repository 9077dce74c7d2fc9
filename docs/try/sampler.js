// Draw by the tables of sampler.json. The names are those of diffusion.py, and the equations those of docs/onnx.md.

const MASK = 2n ** 64n - 1n

// Philox-4x64-10 (Salmon et al. 2011): the four 64-bit words of a counter, for the key (seed, index).
export function philox(counter, seed, index) {
  let [a, b, c, d] = [counter, 0n, 0n, 0n]
  let [k_0, k_1] = [seed, index]
  for (let round = 0; round < 10; round++) {
    const p = 0xD2E7470EE14C6C93n * a, q = 0xCA5A826395121157n * c;
    [a, b, c, d] = [(q >> 64n) ^ b ^ k_0, q & MASK, (p >> 64n) ^ d ^ k_1, p & MASK]
    k_0 = (k_0 + 0x9E3779B97F4A7C15n) & MASK
    k_1 = (k_1 + 0xBB67AE8584CAA73Bn) & MASK
  }
  return [a, b, c, d]
}

// z ~ N(0, I) for images of `size` numbers: each call gives the next draw of each image's own sequence, as the class
// Philox of draw/noise.py does. seed: a BigInt. indices: the numbers of the images.
export class Noise {
  constructor(seed, indices, size) {
    Object.assign(this, { seed, indices, size, drawn: 0 })
  }

  draw() {
    const { seed, indices, size } = this, z = new Float32Array(indices.length * size)
    const first = this.drawn * 2 * size // word of each image: two make a number
    let words, block
    const uniform = (index, at) => {
      if (block !== at >> 2) words = philox(BigInt((block = at >> 2) + 1), seed, BigInt(index))
      return (Number(words[at & 3] >> 11n) + 1) / 2 ** 53 // in (0, 1]
    }
    indices.forEach((index, row) => {
      block = undefined
      for (let i = 0; i < size; i++) {
        const u = uniform(index, first + 2 * i), v = uniform(index, first + 2 * i + 1)
        z[row * size + i] = Math.sqrt(-2 * Math.log(u)) * Math.cos(2 * Math.PI * v)
      }
    })
    this.drawn++
    return z
  }
}

// The network's output at x_t for images with the labels y, guided as the class Guidance of diffusion.py does.
// predict: (x, t, y) -> out, all flat arrays of n images.
async function guide(predict, sampler, x_t, t, y, guidance) {
  if (!y) return predict(x_t, t, null)
  const w = sampler.guided && !sampler.guided[t] ? 1 : guidance
  const none = y.map(() => sampler.null_label)
  if (w === 1 || w === 0) return predict(x_t, t, w ? y : none)
  const x = new Float32Array(2 * x_t.length)
  x.set(x_t)
  x.set(x_t, x_t.length)
  const both = await predict(x, t, [...y, ...none])
  const cond = both.slice(0, both.length / 2), uncond = both.subarray(both.length / 2)
  const each = cond.length / y.length, size = x_t.length / y.length
  return cond.map((c, i) => (i % each < size ? w * c + (1 - w) * uncond[i] : c)) // a variance is not extrapolated
}

// Walk from noise to image by the rows of a table and yield {t, x_t, x0_hat} at each state, t noisings before the
// image: x0_hat is predicted from x_t, and at the end both are x_0. y: a label for each image, or null.
export async function* walk(predict, sampler, table, noise, y, guidance) {
  const n = noise.indices.length, { size } = noise
  const x0_hats = [] // the newest first
  let x_t = noise.draw(), before = table.rows[0].t + 1
  for (const { t, s, cx, c, std, slope } of table.rows) {
    const out = await guide(predict, sampler, x_t, t, y, guidance)
    const each = out.length / n // with a learned variance twice the size: v is the second half
    const x0_hat = x_t.map((x, i) => {
      const x_0 = sampler.from_out[t] * out[Math.floor(i / size) * each + (i % size)] + sampler.from_x_t[t] * x
      return sampler.clip_x0 ? Math.max(-1, Math.min(1, x_0)) : x_0
    })
    yield { t: before, x_t, x0_hat }
    x0_hats.unshift(x0_hat)
    x0_hats.length = Math.min(x0_hats.length, c.length)
    const z = std > 0 ? noise.draw() : null
    x_t = x_t.map((x, i) => {
      let x_s = cx * x
      x0_hats.forEach((m_j, j) => (x_s += c[j] * m_j[i]))
      if (!z) return x_s
      const v = sampler.learns_variance ? out[Math.floor(i / size) * each + size + (i % size)] : 0
      return x_s + std * Math.exp(0.5 * slope * v) * z[i]
    })
    before = s
  }
  yield { t: 0, x_t, x0_hat: x_t }
}
