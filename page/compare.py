"""Draw with two settings from one noise, side by side, with the time that each took."""

import time
from itertools import count
from types import SimpleNamespace

import streamlit as st
import torch

from draw import walk
from draw.noise import of_images
from page import opening, pictures, settings
from page.texts import Stop, one_line, say
from run import build, hardware, labels
from run.config import replace

AGAINST = 'solver', 'weights', 'guidance', 'ckpt'  # what the two settings differ in
OWN = {
    'against': ('solver', AGAINST),
    'b_preset': ('DPM-Solver++ 2M', settings.SAMPLERS),
    'b_steps': (10, None),
    'b_guidance': (3.0, None),
}


def view(opened, config):
    """Show the settings of the sidebar, A, beside the same but for one thing, B, once the reader asks for it."""
    state = st.session_state
    settings.own(**OWN, b_ckpt=('', ['', *state.paths]))
    others = [name for name in AGAINST if name != 'guidance' or config.num_classes]
    others = [name for name in others if name != 'ckpt' or len(state.paths) > 1]
    with st.container(horizontal=True, vertical_alignment='bottom'):
        what = st.selectbox(say('against'), others, key='against', format_func=lambda name: say(f'against_{name}'))
        other, changed = _other(opened, config, what)
    try:
        build.sampler(changed, None)
        if build.shape(changed) != build.shape(config):
            raise ValueError(say('other_shape'))
        labels.chosen(changed)
    except ValueError as error:
        raise Stop(say('does_not_fit', why=one_line(error))) from error
    sides = {'A': (opened, config), 'B': (other, changed)}
    key = [(each.path, each.modified, vars(of)) for each, of in sides.values()]
    if st.button(say('draw_both'), type='primary'):
        state.drawn = key, {name: _draw(*side) for name, side in sides.items()}
    drawn = state.drawn[1] if state.get('drawn', (None,))[0] == key else None
    _show(sides, drawn)
    commands = [replace(of, sample=True) for _, of in sides.values()]
    own = {name: state[name] for name in OWN} | {'b_ckpt': state.b_ckpt if what == 'ckpt' else None}
    settings.same_again(opened, commands, settings.address(opened, **own))


def _other(opened, config, what):
    """Let the reader choose B, and return its checkpoint and config."""
    state = st.session_state
    if what == 'solver':
        state.b_steps = max(1, min(state.b_steps, config.T))
        name = st.selectbox(say('sampler'), list(settings.SAMPLERS), key='b_preset')
        steps = st.number_input(say('sample_steps'), 1, config.T, key='b_steps')
        order, corrector, eta = settings.SAMPLERS[name]
        changes = {'order': order, 'corrector': corrector, 'eta': eta, 'sample_steps': steps % config.T}
        return opened, settings.chosen(opened, **changes)
    if what == 'guidance':
        least, most = settings.LIMITS['guidance']
        state.b_guidance = max(least, min(state.b_guidance, most))
        guidance = st.slider(say('guidance'), least, most, step=0.5, key='b_guidance')
        return opened, settings.chosen(opened, guidance=guidance)
    if what == 'weights':
        weights = 'net' if state.weights == 'ema' else 'ema'
        other = opening.opened(opened.path, weights)
        return other, settings.chosen(opened, weights=weights)
    names = [name for name in state.paths if name != state.ckpt]
    if state.b_ckpt not in names:
        state.b_ckpt = names[0]
    other = opening.opened(state.paths[st.selectbox(say('checkpoint'), names, key='b_ckpt')], state.weights)
    theirs, kept = settings.suggested(other.config), set(settings.FLAGS)
    if theirs.T != config.T:
        kept.remove('sample_steps')
    if labels.names(theirs) != labels.names(config):
        kept -= {'labels', 'guidance'}
    return other, replace(theirs, **{name: getattr(config, name) for name in kept})


def _draw(opened, config):
    """Return the images of a config, x [n, ...], as `--sample` draws them, and the seconds that their walk took."""
    device, n = hardware.device(config), config.num_images
    sampler = build.sampler(config, opened.model).to(device)
    noise = of_images(config, range(n))
    y, x_T = labels.of_indices(config, range(n)), sampler.start(noise())
    next(sampler.trajectory(x_T, y, noise=torch.zeros_like))  # the first call of a network takes longer
    steps, bar, taken = len(sampler.timesteps), st.progress(0.0), count()
    began = shown = time.monotonic()

    def observe(t, x_t, x0_hat):
        nonlocal shown
        k = next(taken)
        if time.monotonic() - shown > 0.1:
            shown = time.monotonic()
            bar.progress(min(1.0, k / steps))

    x = walk.denoise(config, sampler, x_T, y, noise, lambda: False, observe)
    seconds = time.monotonic() - began
    bar.empty()
    return SimpleNamespace(x=x.cpu(), seconds=seconds, steps=steps)


def _show(sides, drawn):
    """Show the settings of both sides and, if they are drawn, their images, times and difference."""
    for column, (name, (opened, config)) in zip(st.columns(2), sides.items(), strict=True):
        with column:
            st.markdown(f'#### {name}')
            st.markdown(_described(opened, config))
            if drawn:
                one = drawn[name]
                canvas = opening.canvases(opened, build.sampler(config, None))[0]
                st.image(pictures.url(canvas.draw(one.x)))
                st.markdown(say('took', seconds=f'{one.seconds:.2f}', steps=one.steps))
    if drawn:
        a, b = (one.x for one in drawn.values())
        st.markdown(say('differ', rms=f'{(a - b).square().mean().sqrt().item():.3f}'))


def _described(opened, config):
    """Return the settings of a side in one line."""
    words = [
        settings.name_of(config) or say('own_sampler'),
        say('in_steps', steps=config.sample_steps or config.T),
        say('ema' if config.weights == 'ema' else 'raw'),
        *([f'{say("guidance")} {config.guidance:g}'] if config.num_classes else []),
        next(name for name, path in st.session_state.paths.items() if path == opened.path),
    ]
    return ' · '.join(words)
