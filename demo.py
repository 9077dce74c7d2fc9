"""Step through the diffusion of a checkpoint on a web page: streamlit run demo.py -- --ckpt logs/DIGITS/ckpt.pt

From the state shown, Denoise walks the reverse process p and Diffuse walks the forward process q, by some steps per
click. The page follows the demo of pesser/pytorch_diffusion. The session keeps every step, so that any click may
interrupt a walk, and the next walk goes on from where it stopped.
"""

import argparse
import io
import math
import os
import time
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import streamlit as st

import main
from draw import picture
from draw.inference import Inference
from draw.noise import Noise
from run import build, hardware, labels
from run.checkpoint import CheckpointError
from run.restore import restore

FRAMES = 150  # the most pictures in an animation; beyond that, every second one is dropped
SECONDS = 0.05  # the shortest time between two pictures of a walk


def page():
    """Show the page. Streamlit runs this script anew at each click."""
    st.set_page_config('Step through a diffusion', layout='wide')
    st.title('Step through a diffusion')
    path, weights = choose_checkpoint()
    try:
        config, net, trained = load(path, os.path.getmtime(path), weights)
    except (CheckpointError, OSError, ValueError) as error:
        st.error(f'This checkpoint cannot be used: {error}')
        st.stop()
    config, wanted = choose(config)
    sampler = build.sampler(config, net).to(hardware.device(config))
    size = sum(p.numel() for p in net.parameters())
    st.caption(f'{path}: {size:,} parameters, {config.T} steps of diffusion, trained for {trained} steps')
    walk = current_walk(config, sampler, (path, os.path.getmtime(path), config.seed, wanted.n), wanted.n)
    controls(config, sampler, walk, wanted)
    with st.expander('Schedule'):
        draw_schedule(sampler)


def choose_checkpoint():
    """Return the chosen checkpoint, from --logs or the command line, and the chosen weights, 'ema' or 'net'."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--ckpt')
    parser.add_argument('--logs', default='logs')
    given, unknown = parser.parse_known_args()
    if unknown:
        st.error(f'Unknown arguments {" ".join(unknown)}: the page takes --ckpt PATH and --logs FOLDER')
    paths = sorted(map(str, Path(given.logs).rglob('ckpt*.pt')))
    if given.ckpt:
        paths = [given.ckpt, *(path for path in paths if os.path.abspath(path) != os.path.abspath(given.ckpt))]
    if not paths:
        st.info(f'There is no checkpoint under {given.logs}/: train one, as `make demo` does, or name one by --ckpt')
        st.stop()
    path = st.sidebar.selectbox('Checkpoint', paths, format_func=lambda path: os.path.join(*Path(path).parts[-2:]))
    names = {'ema': 'EMA', 'net': 'raw'}
    return path, st.sidebar.radio('Weights', list(names), format_func=names.get, horizontal=True)


@st.cache_resource(max_entries=4, show_spinner='Loading the checkpoint')
def load(path, modified, weights):
    """Return (config, network to draw with, training steps). `modified` makes a changed checkpoint load again."""
    if not main.FLAGS.is_parsed():
        main.FLAGS(['demo.py'])
    config, _ = main.configuration()
    config.ckpt, config.weights = path, weights
    config, net, trained = restore(config, {'weights'})
    return config, Inference(net, hardware.precision(config)), trained


# name -> order, corrector and eta. Each click on Denoise begins a walk, and with it the order, anew.
SAMPLERS = {
    'ancestral': (1, False, 1.0),
    'DDIM': (1, False, 0.0),
    'DPM-Solver++': (2, False, 0.0),
    'SDE-DPM-Solver++': (2, False, 1.0),
    'UniPC': (3, True, 0.0),
}


def choose(config):
    """Return the config with the sampler chosen in the sidebar, and the other choices: n, steps and show_x0."""
    side = st.sidebar
    chosen = SimpleNamespace(**vars(config))
    name = side.radio('Sampler', list(SAMPLERS), horizontal=True)
    chosen.order, chosen.corrector, chosen.eta = SAMPLERS[name]
    if name == 'DDIM':
        chosen.eta = side.slider('eta', 0.0, 1.0, 0.0)
    fewest = min(chosen.order, config.T)
    chosen.sample_steps = side.number_input('Sampling steps', fewest, config.T, config.sample_steps or config.T)
    chosen.spacing, chosen.timesteps = 'auto', []
    chosen.clip_denoised = side.checkbox('Clip outputs', config.clip_denoised)
    if config.num_classes:
        chosen.labels = side.selectbox('Label', ['all', *labels.names(config)])
        chosen.guidance = side.slider('Guidance', 0.0, 10.0, 1.0, 0.5)
    chosen.seed = side.number_input('Seed', 0, 2**31 - 1, 0)
    points = build.is_points(config)
    n = side.number_input('Points', 1, 10000, 2000) if points else side.number_input('Images', 1, 64, 9)
    return chosen, SimpleNamespace(
        n=n,
        steps=side.number_input('Steps a click', 1, config.T, min(10, config.T)),
        show_x0=side.checkbox('Show predicted x0'),
    )


def current_walk(config, sampler, key, n):
    """Return the walk in the session, or a new one from x_T if another checkpoint, seed or number was chosen.

    A walk holds t, the noisings left; x, the state [n, ...]; x0_hat, the prediction that led to x, if any; z, the
    first draw of noise, and noise, which draws more; and frames, the pictures so far.
    """
    walk = st.session_state.get('walk')
    if walk is None or walk.key != key:
        noise = Noise(config.seed, range(n), build.shape(config), hardware.device(config))
        walk = SimpleNamespace(key=key, z=noise(), noise=noise, t=None, x0_hat=None, frames=[])
        st.session_state.walk = walk
    if not walk.frames:  # the walk has not begun: start it as the sampler chosen now does
        walk.t, walk.x = sampler.states[-1], sampler.start(walk.z)
    return walk


def controls(config, sampler, walk, wanted):
    """Show the buttons and the pictures, and do what the buttons say."""
    columns = st.columns(4)
    denoise = columns[0].button(f'Denoise {wanted.steps} steps', disabled=walk.t == 0, width='stretch', type='primary')
    diffuse = columns[1].button(f'Diffuse {wanted.steps} steps', disabled=walk.t == config.T, width='stretch')
    columns[2].button('Stop', width='stretch')  # any click ends the run of the script, and with it the walk
    if columns[3].button('Reset', width='stretch'):
        del st.session_state.walk
        st.rerun()
    view = SimpleNamespace(status=st.empty(), progress=st.empty(), pictures=st.columns(2 if wanted.show_x0 else 1))
    view.pictures = [column.empty() for column in view.pictures]
    show(config, walk, view)
    if denoise or diffuse:
        y = labels.of_indices(config, range(wanted.n))
        if not walk.frames:
            remember(walk)
        if denoise:
            states = sampler.trajectory(walk.x, y, walk.t, noise=walk.noise)
        else:
            states = ((t, x_t, None) for t, x_t in sampler.diffuse(walk.x, walk.t, noise=walk.noise))
        go(config, walk, view, islice(states, wanted.steps), wanted.steps)
        st.rerun()
    if len(walk.frames) > 1:
        gif = partial(animation, walk.frames)
        st.download_button('Download the animation', gif, 'diffusion.gif', 'image/gif', on_click='ignore')


def go(config, walk, view, states, steps):
    """Take the walk through `states`, an iterable of (t, x_t, x0_hat or None), and show it now and then."""
    shown = time.monotonic()
    for i, (walk.t, walk.x, walk.x0_hat) in enumerate(states, 1):
        view.progress.progress(i / steps, f'step {i} of {steps}')
        if time.monotonic() - shown > SECONDS:
            remember(walk)
            show(config, walk, view)
            shown = time.monotonic()
    remember(walk)


def show(config, walk, view):
    """Show the current step, x_t and, if the view has a place for it, the predicted x_0."""
    view.status.markdown(f'**Step t = {walk.t}** of {config.T} noisings left')
    view.pictures[0].image(draw(walk.x), caption=f'x_t at t = {walk.t}')
    if len(view.pictures) > 1:
        if walk.x0_hat is None:
            view.pictures[1].info('No prediction yet: denoise a step')
        else:
            view.pictures[1].image(draw(walk.x0_hat), caption='predicted x_0')


def draw(x):
    """Draw a batch as a picture about 480 pixels wide."""
    return picture.of(x, 480 // math.ceil(math.sqrt(len(x))))


def remember(walk):
    """Add the state to the animation."""
    walk.frames.append(draw(walk.x))
    if len(walk.frames) > FRAMES:
        del walk.frames[1::2]


def animation(frames):
    """Return a GIF of the frames that rests on the last one."""
    file = io.BytesIO()
    rest = [*[60] * (len(frames) - 1), 2000]  # milliseconds
    frames[0].save(file, 'GIF', save_all=True, append_images=frames[1:], duration=rest, loop=0)
    return file.getvalue()


def draw_schedule(sampler):
    """Plot how much of the image and of the noise is in x_t."""
    alphas_bar = sampler.alphas_bar.cpu()
    curves = {'sqrt(alphas_bar): image': alphas_bar.sqrt(), 'sqrt(1 - alphas_bar): noise': (1 - alphas_bar).sqrt()}
    data = {'t': list(range(1, len(alphas_bar) + 1)), **{name: curve.tolist() for name, curve in curves.items()}}
    st.line_chart(data, x='t', y=list(curves), x_label='t, noisings', y_label='share in x_t')


page()
