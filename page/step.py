"""Show what a step is made of: its equation with its numbers, its pictures, and where it is on the schedule."""

import pandas as pd
import streamlit as st
import torch

from page import held, pictures
from page.texts import say

SMALL = 110  # width of a picture, in pixels
POINTS = 200  # of a curve


def field(walk):
    """Return the x_0 predicted from each place of the grid of a plane, [N, 2], or None for images and at x_0."""
    state = walk.state
    if not isinstance(walk.canvas, pictures.Plane) or not state.t:
        return None
    if not hasattr(state, 'field'):
        places, y = walk.canvas.grid().to(state.x.device), walk.y
        one = y is not None and bool((y == y[0]).all())  # several labels have several fields: show that of no label
        y = y[:1].expand(len(places)) if one else None
        state.field = next(walk.sampler.walk(places, y, state.t, noise=torch.zeros_like)).x0_hats[0]
    return state.field


def terms(walk):
    """Return the terms that add up to x_s: (LaTeX, weight, tensor), x_t first and, if there is any, the noise last."""
    taken = walk.taken()
    found = [(f'x_{{{taken.t}}}', taken.row.cx, taken.x_t)]
    for j, (weight, x0_hat) in enumerate(zip(taken.row.c, taken.x0_hats, strict=False)):
        found.append((rf'\hat x_0(x_{{{walk.states[walk.at - j].t}}})', weight, x0_hat))
    if taken.z is not None:
        found.append(('z', taken.std, taken.z))
    return found


def show(walk):
    """Show the step that leads on from the state at hand, of one image or point."""
    taken = walk.taken()
    if taken is None:
        st.info(say('completed' if walk.stops else 'no_step'))
        return
    parts = terms(walk)
    mean = sum(weight * x for _, weight, x in parts if x is not taken.z)
    item, place = _place(taken.x_t)
    _equation(taken, parts, item, place)
    if walk.project and taken.x0_hats:
        _projection(walk, taken, item, place)
    _pictures(walk, taken, mean, item, place)
    _table(taken, parts, item, place)
    _curves(walk, taken)


def _place(x):
    """Let the reader choose one number of a state: return the index of the item, and the place in it."""
    names = ('channel', 'row', 'column') if x.ndim == 4 else ('coordinate',)
    sizes = dict(zip(names, x.shape[1:], strict=True))
    with st.container(horizontal=True):
        item = _number('image' if x.ndim == 4 else 'point', len(x))
        return item, tuple(_number(name, size, size // 2 if name != 'channel' else 0) for name, size in sizes.items())


def _number(name, size, start=0):
    if size == 1:
        return 0
    state, key = st.session_state, f'at_{name}'
    if state.get(key, size) >= size:
        state[key] = min(start, size - 1)
    st.number_input(say(name), 0, size - 1, state[key], width=150, **held.by(key, state[key], identity=[size]))
    return state[key]


def _equation(taken, parts, item, place):
    """Show the equation of the step in letters and in numbers."""
    symbols = ['c_x', *(f'c_{j}' for j in range(len(taken.x0_hats))), r'\sigma']
    letters = ' + '.join(rf'{symbol}\, {name}' for symbol, (name, _, _) in zip(symbols, parts, strict=False))
    numbers = ''
    for name, weight, _ in parts:
        weight = _at(weight, item, place)
        numbers += f'{"-" if weight < 0 else "+" if numbers else ""} {abs(weight):.4f}\\, {name} '
    st.markdown(f'##### $x_{{{taken.s}}} = {letters}$\n##### $\\hphantom{{x_{{{taken.s}}}}} = {numbers}$')
    if not taken.x0_hats:
        st.caption(say('back_up', t=taken.t, s=taken.s))
    elif taken.z is None:
        st.caption(say('no_noise'))


def _projection(walk, taken, item, place):
    """Show how the known pixels were put into the prediction, by `Operator.projection`, at one pixel."""
    m = int(walk.known[item][(0, *place[1:])])
    y, raw, x0_hat = (_at(x, item, place) for x in (walk.source, walk.state.raw, taken.x0_hats[0]))
    name = rf'\hat x_0(x_{{{taken.t}}})'
    letters = rf"{name} = m\, y + (1 - m)\, \hat x_0'"
    st.markdown(f'${letters} = {m} \\cdot ({y:.8f}) + {1 - m} \\cdot ({raw:.8f}) = {x0_hat:.8f}$')
    st.caption(say('projection'))


def _at(value, item, place):
    return value[item][place].item() if isinstance(value, torch.Tensor) else value


def _pictures(walk, taken, mean, item, place):
    """Show one item on its way from x_t to x_s; of points, all."""
    t = torch.full((1,), taken.t - 1, device=taken.x_t.device).expand(len(taken.x_t))
    added = taken.x_s - mean if taken.z is None else taken.std * taken.z
    shown = {'x_t': (taken.x_t, walk.canvas)}
    if taken.x0_hats:
        raw = walk.state.raw if walk.project else taken.x0_hats[0]
        shown['eps'] = walk.sampler.predict_eps_from_xstart(taken.x_t, t, raw), walk.unit
        if walk.project:
            shown['raw'] = raw, walk.canvas
        shown['x0_hat'] = taken.x0_hats[0], walk.canvas
    shown |= {'mean': (mean, walk.canvas), 'added': (added, walk.canvas), 'x_s': (taken.x_s, walk.canvas)}
    for j, x0_hat in enumerate(taken.x0_hats[1:], 1):
        shown[f'before {walk.states[walk.at - j].t}'] = x0_hat, walk.canvas
    with st.container(horizontal=True):
        for name, (x, canvas) in shown.items():
            name, _, before = name.partition(' ')
            if x.ndim == 4:
                drawn = canvas.draw(x[item : item + 1], SMALL, mark=place[1:])
            else:
                drawn = canvas.draw(x, 2 * SMALL, mark=item)
            st.image(pictures.url(drawn), say(f'of_{name}', t=before or taken.t, s=taken.s), width=drawn.width)


def _table(taken, parts, item, place):
    """Show the numbers of one pixel or coordinate, exact enough to add them up."""
    rows = {}
    for name, weight, x in parts:
        weight, value = _at(weight, item, place), _at(x, item, place)
        rows[f'${name}$'] = [f'{number:.8f}' for number in (weight, value, weight * value)]
    rows[f'$x_{{{taken.s}}}$'] = [say('sum'), '', f'{_at(taken.x_s, item, place):.8f}']
    columns = [say('weight'), say('value'), say('product')]
    st.table(pd.DataFrame.from_dict(rows, orient='index', columns=columns))


def _curves(walk, taken):
    """Plot alphas_bar, the std of the sampler's steps and the SNR over t, with a dot at the t at hand."""
    if not hasattr(walk, 'curves'):
        route = walk.sampler.route()
        picked = route if len(route) <= POINTS else [route[i * len(route) // POINTS] for i in range(POINTS)]
        walk.curves = [_heights(walk, timestep + 1, row) for timestep, _, row in picked]
    rows = [(*row, 'curve') for row in walk.curves] + [(*_heights(walk, taken.t, taken.row), 'here')]
    x = {'field': 't', 'type': 'quantitative', 'title': say('noisings'), 'scale': {'domain': [walk.sampler.T, 0]}}
    colours = {'alphas_bar': '#1f6fc4', 'std': '#2a9d5c', 'snr': '#c77d0a'}

    def lines(name, title, kind):
        mark = {'type': 'line'} if kind == 'curve' else {'type': 'point', 'filled': True, 'size': 120}
        y = {'field': name, 'type': 'quantitative', 'axis': {'title': title, 'titleColor': colours[name]}}
        return {
            'mark': {**mark, 'color': colours[name]},
            'transform': [{'filter': f'datum.kind == "{kind}"'}],
            'encoding': {'x': x, 'y': y},
        }

    left = [lines('alphas_bar', None, kind) for kind in ('curve', 'here')]
    left += [lines('std', None, kind) for kind in ('curve', 'here')]
    right = [lines('snr', 'log10 SNR', kind) for kind in ('curve', 'here')]
    spec = {'height': 220, 'layer': [{'layer': left}, {'layer': right}], 'resolve': {'scale': {'y': 'independent'}}}
    st.vega_lite_chart(pd.DataFrame(rows, columns=['t', *colours, 'kind']), spec, width='stretch')
    st.caption(say('curves'))


def _heights(walk, t, row):
    alphas_bar = walk.sampler.alphas_bar[t - 1].item()
    snr = torch.tensor(alphas_bar / (1 - alphas_bar)).log10().item()
    return t, alphas_bar, row.std, snr if alphas_bar else None
