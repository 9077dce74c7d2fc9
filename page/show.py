"""Show a walk: its controls, the state at hand, and what the next step is made of."""

import time

import pandas as pd
import streamlit as st

from page import held, opening, pictures, settings, start, step
from page.texts import Stop, one_line, say
from run.config import replace

PACES = 1, 2, 5, 10, 20  # pictures a second
PAINTING = 0.08  # seconds that the browser has to show a click's pictures before it gets the charts, which keep it busy
BUDGET = 0.25  # seconds that may pass until the page shows how far a long way has come


def view(opened, config):
    """Show the walk of a visitor. It lives in the session, and a changed setting begins another from the same noise."""
    state = st.session_state
    settings.own(n=(1, range(1, config.T + 1)), pace=(10, PACES), show_x0=(True, None), show_step=(True, None))
    if state.n > config.T:
        state.n = config.T
    config = start.choose(opened, config)
    try:
        walk = _current(opened, config)
    except opening.FAULTS as error:
        raise Stop(say('no_start', why=one_line(error))) from error
    if walk.stops:
        start.show_known(walk)
    state.whole = True
    st.fragment(_page, run_every=1 / state.pace if state.play else None)(opened, config, walk)


def _current(opened, config):
    """Return the walk of the session, or a new one if a setting has changed; the first one goes as the address says.

    Raise one of `opening.FAULTS` if there is nothing to start from.
    """
    state, key = st.session_state, (opened.path, opened.modified, start.key(config))
    if state.get('walk_key') == key:
        return state.walk
    walk = start.begin(opened, config)
    walk.canvas, walk.unit = opening.canvases(opened, walk.sampler)
    state.direction = 'denoise' if walk.state.t else 'diffuse'
    state.walk, state.walk_key, state.play, state.target = walk, key, False, None
    if path := state.link.pop('walk', ''):
        try:
            runs = read_path(path)
            if walk.stops and not all(denoise for denoise, _ in runs):
                raise ValueError(say('one_way', path=path))
            with st.spinner(say('replaying')):
                walk.replay(runs)
            state.direction = 'denoise' if runs[-1][0] else 'diffuse'
        except ValueError as error:
            st.warning(say('bad_link', why=str(error)))
    return walk


def read_path(path):
    """Return the runs of `Walk.replay` that a path says: denoise20.diffuse5. Raise ValueError if it says none."""
    runs = []
    for part in path.split('.'):
        name = part.rstrip('0123456789')
        if name not in ('denoise', 'diffuse') or name == part:
            raise ValueError(say('bad_path', path=path))
        runs.append((name == 'denoise', int(part[len(name) :])))
    return runs


def write_path(runs):
    """Return the path that `read_path` reads."""
    return '.'.join(f'{"denoise" if denoise else "diffuse"}{steps}' for denoise, steps in runs)


def _page(opened, config, walk):
    """Show everything that changes with a step. Streamlit runs this anew at each click, and at each tick of a play."""
    state = st.session_state
    scope = 'app' if state.pop('whole', False) else 'fragment'  # of this run, and so of the next
    denoise = state.direction == 'denoise'
    end = walk.end(denoise)
    if state.play and walk.at >= end:
        state.play = False
        st.rerun()
    target = state.target if state.target is not None else walk.at + state.n * state.play
    walk.go(target, denoise, BUDGET)
    walk.taken()
    arrived = walk.at == max(0, min(target, end))
    if arrived:
        state.target = None
    _controls(walk, denoise, end, arrived)
    _status(walk)
    _states(walk)
    if not state.play:
        time.sleep(PAINTING)
    _timeline(walk)
    _pace(walk)
    if state.show_step:
        step.show(walk)
    _save(walk)
    _same_again(opened, config, walk)
    if not arrived:
        st.rerun(scope=scope)


def _same_again(opened, config, walk):
    """Show the command line and the link that make this state again."""
    state, own = st.session_state, {'n': 1, 'pace': 10, 'show_x0': True, 'show_step': True}
    more = {name: state[name] for name, default in own.items() if state[name] != default}
    if walk.stops:
        more |= {name: getattr(config, name) for name in start.EDIT}
    address = settings.address(opened, walk=write_path(walk.runs) or None, **more)
    same = {'sample': True} if state.start == 'noise' else {'figure': 'forward'}
    if walk.stops:
        same = {'num_images': None}  # the images and their variants say how many
    settings.same_again(opened, [replace(config, **same)], address, resting=not state.play)
    if walk.stops:
        st.caption(say('save_sources', name=config.images))
    if state.start == 'upload':
        st.caption(say('no_upload_in_link'))


def _controls(walk, denoise, end, arrived):
    """Show the controls of time. All of them hold values, so that no click can be lost while a step is computed."""
    state, n = st.session_state, st.session_state.n
    names = {name: say(name) for name in (['denoise'] if walk.stops else ['denoise', 'diffuse'])}

    def go(k):
        if k != walk.at:  # a new widget reports its value, too
            state.target, state.play = k, False

    def turn(direction):
        if direction in names:
            state.direction, state.target, state.play = direction, None, False

    def play(on):
        if on != state.play:
            state.target, state.play, state.restart = None, on, True
            if on and walk.at == walk.end(denoise):
                walk.at = 0

    if state.pop('restart', False):  # the whole script sets the clock
        st.rerun()
    with st.container(horizontal=True, vertical_alignment='bottom'):
        how = {'horizontal': True, 'label_visibility': 'collapsed', 'width': 'content', 'format_func': names.get}
        index = list(names).index(state.direction)
        how |= held.by('direction', state.direction, turn, [state.lang, *names])
        st.radio(say('direction'), list(names), index, **how)
        value = walk.at if arrived else state.target
        how = {'width': 150, 'disabled': state.play, **held.by('step', value, go, [end, n])}
        least, most = 1 - n, end + n - 1  # so that - and + reach both ends
        st.number_input(say('step_of', end=end), least, most, value, step=n, **how)
        st.toggle(say('play'), state.play, **held.by('play', state.play, play))
    if end:
        how = {'label_visibility': 'collapsed', 'disabled': state.play, **held.by('position', walk.at, go, [end])}
        st.slider(say('position'), 0, end, walk.at, **how)


def _pace(walk):
    """Show what a click does, how fast a play is, and what is shown beside the state."""
    state = st.session_state

    def pace(value):
        state.pace, state.restart = value, True

    with st.container(horizontal=True, vertical_alignment='bottom'):
        st.number_input(say('n'), 1, walk.sampler.T, state.n, help=say('n_help'), width=170, **held.by('n', state.n))
        st.select_slider(say('speed'), PACES, state.pace, width=170, **held.by('pace', state.pace, pace))
        st.toggle(say('show_x0'), state.show_x0, **held.by('show_x0', state.show_x0))
        st.toggle(say('show_step'), state.show_step, **held.by('show_step', state.show_step))


def _status(walk):
    """Say where the walk is."""
    state, T = walk.state, walk.sampler.T
    text = say('status', t=state.t, T=T, k=walk.at)
    if not walk.at and 0 < state.t < T and not state.denoised:
        text += ' ' + say('starts_below', t=state.t, T=T, S=len(walk.sampler.timesteps))
    st.markdown(text)


def _states(walk):
    """Show x_t and the x_0 predicted from it."""
    x, t, taken = walk.state.x, walk.state.t, walk.taken()
    field = step.field(walk)
    halves = [walk.canvas.draw(x) if field is None else walk.canvas.draw(x, field=field), None]
    caption = say('x_t', t=t)
    if st.session_state.show_x0:
        if taken and not taken.x0_hats:  # it goes back up: show what led here
            taken = walk.taken(walk.at - 1)
        halves[1] = walk.canvas.draw(taken.x0_hats[0] if taken else x)
        caption += ' · ' + (say('x0_projected' if walk.project else 'x0_hat', t=taken.t) if taken else say('x_0'))
    drawn = pictures.beside(*halves)
    st.image(pictures.url(drawn), caption)


def _timeline(walk):
    """Mark the states that the sampler passes through, those that have been walked, and the one at hand."""
    walked = {state.t for state in walk.states[: walk.at + 1]}
    rows = [(t, 'walked' if t in walked else 'to come') for t in sorted({*walk.sampler.states, *walked})]
    rows.append((walk.state.t, 'here'))
    x = {'field': 't', 'type': 'quantitative', 'title': None, 'scale': {'domain': [walk.sampler.T, 0]}}
    colour = {'domain': ['to come', 'walked', 'here'], 'range': ['#a0a4b0', '#1f6fc4', pictures.MARK]}
    spec = {
        'height': 56,
        'encoding': {
            'x': x,
            'color': {'field': 'kind', 'type': 'nominal', 'scale': colour, 'legend': None},
        },
        'layer': [
            {
                'mark': {'type': 'tick', 'thickness': 2, 'size': 18, 'orient': 'vertical'},
                'transform': [{'filter': 'datum.kind != "here"'}],
            },
            {'mark': {'type': 'point', 'filled': True, 'size': 140}, 'transform': [{'filter': 'datum.kind == "here"'}]},
        ],
    }
    st.vega_lite_chart(pd.DataFrame(rows, columns=['t', 'kind']), spec, width='stretch')


def _save(walk):
    """Offer the state and the walk as files."""
    x = walk.state.x
    with st.container(horizontal=True):
        how = {'on_click': 'ignore'}
        st.download_button(
            say('png'), lambda: pictures.png(pictures.flat(walk.canvas, x)), 'x_t.png', 'image/png', **how
        )
        states = [each.x for each in walk.states[: walk.at + 1]]
        st.download_button(say('gif'), lambda: pictures.gif(walk.canvas, states), 'walk.gif', 'image/gif', **how)
        if walk.stops:
            st.download_button(say('sources'), lambda: start.npz(walk.sources), start.SOURCES, **how)
