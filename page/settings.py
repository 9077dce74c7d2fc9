"""The settings of a visitor: widgets in the sidebar, the address that restores them, and the same as a command line.

A setting that is a flag of main.py has the name of the flag everywhere. Its value in an address is read as on the
command line.
"""

import shlex
from urllib.parse import urlencode

import streamlit as st

import main
from page import opening
from page.texts import LANGUAGES, Stop, one_line, say
from page.walk import most_items
from process.schedules import SPACINGS
from process.solvers import SOLVERS
from run import build, labels
from run.config import ROLES, keys, replace, words

# name -> order, corrector and eta
SAMPLERS = {
    'DDPM': (1, False, 1.0),
    'DDIM': (1, False, 0.0),
    'DPM-Solver++ 2M': (2, False, 0.0),
    'SDE-DPM-Solver++ 2M': (2, False, 1.0),
    'UniPC-2': (2, True, 0.0),
    'UniPC-3': (3, True, 0.0),
}
FLAGS = (
    'order', 'corrector', 'eta', 'sample_steps', 'spacing', 'eps_scale', 'clip_denoised',
    'labels', 'guidance', 'seed', 'num_images',
)  # fmt: skip
STARTS = 'noise', 'image', 'upload'
START = {'start': 'noise', 'item_class': '', 'item': 0}
TRANSLATED = {'start': STARTS, 'weights': ('ema', 'net'), 'view': ('walk', 'compare', 'figures')}
# name -> smallest and largest value of its widget; what lies beyond, Streamlit would replace without a word
LIMITS = {'eps_scale': (0.5, 2.0), 'guidance': (0.0, 10.0), 'seed': (0, 2**31 - 1)}
IMAGES = 64  # the most images
DEFAULT_IMAGES, DEFAULT_POINTS = 9, 2000


def begin():
    """Read the address once in a session, and show the switch of the language."""
    state = st.session_state
    if 'link' not in state:
        state.link = st.query_params.to_dict()
        chinese = (st.context.locale or '').startswith('zh')
        language = state.link.pop('lang', 'zh' if chinese else 'en')
        state.lang = language if language in LANGUAGES else 'en'
        state.shown, state.kept = None, {}  # the checkpoint that the settings are for, and what `own` keeps
    for name in state.kept.keys() & state.keys():
        if name in TRANSLATED and state[name] not in TRANSLATED[name]:  # a text of the language before, still under way
            state[name] = state.kept[name]
        state.kept[name] = state[name]
    st.sidebar.radio('Language 语言', list(LANGUAGES), key='lang', format_func=LANGUAGES.get, horizontal=True)


def own(**settings):
    """Put the settings of a view into the session: as they were, else as the address says, else their defaults.

    settings: {name: (default, choices or None for any)}. Streamlit forgets the value of a widget that is not shown.
    """
    state = st.session_state
    for name, (default, choices) in settings.items():
        if name in state:
            continue
        value, text = state.kept.get(name, default), state.link.pop(name, None)
        if text is not None:
            try:
                value = PARSERS[type(default)](text)
            except ValueError:
                value = None
            if value is None or (choices is not None and value not in choices):
                st.warning(say('bad_link', why=f'{name}={text}'))
                value = default
        state[name] = state.kept[name] = value


PARSERS = {bool: main.flags.BooleanParser().parse, int: int, float: float, str: str}


def checkpoint():
    """Show the choice of a checkpoint and of its weights, and return what `opening.load` makes of them."""
    state, paths = st.session_state, opening.found()
    if state.get('ckpt') and state.ckpt not in paths:
        paths[state.ckpt] = state.gone  # it has been deleted since
    if 'ckpt' not in state:
        wanted = state.link.pop('ckpt', None)
        if wanted and wanted not in paths:
            st.warning(say('link_checkpoint', name=wanted))
            state.link = {}
        state.ckpt = wanted if wanted in paths else next(iter(paths))
        state.weights = state.kept['weights'] = 'net' if state.link.pop('weights', '') == 'net' else 'ema'
    st.sidebar.selectbox(
        say('checkpoint'), list(paths), key='ckpt', format_func=lambda name: name.removesuffix('/ckpt.pt')
    )
    names = {'ema': say('ema'), 'net': say('raw')}
    st.sidebar.radio(say('weights'), list(names), key='weights', format_func=names.get, horizontal=True)
    state.paths, state.gone = paths, paths[state.ckpt]
    return opening.opened(paths[state.ckpt], state.weights)


def settle(opened):
    """Put the settings into the session: when it begins those of the address, else what the checkpoint suggests."""
    state, config = st.session_state, suggested(opened.config)
    if state.shown == (opened.path, opened.modified):
        for name in (*FLAGS, *START):  # those of which an error has hidden the widgets
            state.setdefault(name, state.kept[name])
        return
    state.shown = opened.path, opened.modified
    proposed = {**{name: getattr(config, name) for name in FLAGS}, **START}
    state.update(proposed)
    try:
        _follow(opened)
    except ValueError as error:
        state.update(proposed)
        state.link = {}
        st.warning(say('bad_link', why=one_line(error)))
    state.kept.update({name: state[name] for name in proposed})


def _follow(opened):
    """Take the settings of the address. Raise ValueError, saying why, if one of them has no meaning here."""
    state, link = st.session_state, st.session_state.link
    for name in FLAGS:
        if name in link:
            try:
                state[name] = main.FLAGS[name].parser.parse(link.pop(name))
            except ValueError as error:
                raise ValueError(f'{name}: {error}') from error
    for name in START:
        if name in link:
            state[name] = int(link.pop(name)) if name == 'item' else link.pop(name)
    if state.start not in STARTS[:2]:
        raise ValueError(say('link_start', start=state.start))
    sampler = build.sampler(chosen(opened), None)
    labels.chosen(chosen(opened))
    if state.labels not in ('all', *labels.names(opened.config)):  # the page shows one label or all
        raise ValueError(f'labels={state.labels}')
    for name, (least, most) in {**LIMITS, 'num_images': (1, most_images(opened, sampler))}.items():
        if not least <= state[name] <= most:
            raise ValueError(say('link_range', name=name, least=least, most=most))


def suggested(config):
    """Return the config that the page begins with: that of the checkpoint, drawn as `--sample --ckpt` draws."""
    points = build.is_points(config)
    states = len(build.sampler(config, None).states)
    n = DEFAULT_POINTS if points else min(DEFAULT_IMAGES, most_items(states, build.shape(config)))
    return replace(config, timesteps=[], num_images=n)


def most_images(opened, sampler):
    """Return the largest number of images, or points, of a walk."""
    most = most_items(len(sampler.states), build.shape(opened.config))
    return most if build.is_points(opened.config) else min(IMAGES, most)


def chosen(opened, **changes):
    """Return the config of the settings in the session."""
    values = {name: st.session_state[name] for name in FLAGS}
    if values['sample_steps'] == opened.config.T:
        values['sample_steps'] = 0  # all, as on the command line
    return replace(suggested(opened.config), **{**values, **changes})


def _use_preset():
    state, before = st.session_state, st.session_state.order
    state.order, state.corrector, state.eta = SAMPLERS[state.preset]
    if state.order != before:  # as on the command line, the spacing goes with the order
        state.spacing = 'auto'


def name_of(config):
    """Return the name of the config's sampler, or None if it has none."""
    kind = config.order, config.corrector, config.eta
    return next((name for name, parts in SAMPLERS.items() if parts == kind), None)


def choose(opened):
    """Show the settings in the sidebar and return the config that they make. Raise Stop if they do not fit."""
    state, side, config = st.session_state, st.sidebar, opened.config
    if not state.sample_steps:
        state.sample_steps = config.T
    state.preset = name_of(chosen(opened))
    side.selectbox(say('sampler'), list(SAMPLERS), key='preset', on_change=_use_preset, placeholder=say('own_sampler'))
    side.number_input(say('sample_steps'), 1, config.T, key='sample_steps')
    # No expander here, nor popover elsewhere: what they hide forgets the values that the page sets.
    side.selectbox(say('order'), list(SOLVERS), key='order', help=say('order_help'))
    side.toggle(say('corrector'), key='corrector', help=say('corrector_help'))
    side.slider('eta', 0.0, 1.0, key='eta', help=say('eta_help'))
    side.selectbox(say('spacing'), ['auto', *SPACINGS], key='spacing', help=say('spacing_help'))
    how = {'step': 0.001, 'format': '%.3f', 'key': 'eps_scale', 'help': say('eps_scale_help')}
    side.number_input('eps_scale', *LIMITS['eps_scale'], **how)
    side.toggle(say('clip'), key='clip_denoised', help=say('clip_help'))
    if config.num_classes:
        side.selectbox(say('label'), ['all', *labels.names(config)], key='labels', format_func=_label)
        side.slider(say('guidance'), *LIMITS['guidance'], step=0.5, key='guidance', help=say('guidance_help'))
    try:
        sampler = build.sampler(chosen(opened), None)
    except ValueError as error:
        raise Stop(say('does_not_fit', why=one_line(error))) from error
    points, most = build.is_points(config), most_images(opened, sampler)
    if state.num_images > most:  # longer walks keep fewer images
        state.num_images = most
    side.number_input(say('points' if points else 'images'), 1, most, key='num_images')
    side.number_input(say('seed'), *LIMITS['seed'], key='seed', help=say('seed_help'))
    return chosen(opened)


def _label(name):
    return say('all_labels') if name == 'all' else name


def command(config, opened):
    """Return the command line of main.py that does the same: the flags that `--ckpt` alone does not say."""
    own = opened if config.ckpt == opened.path else opening.opened(config.ckpt, config.weights)
    base = replace(own.config, weights='ema', ckpt='', num_images=None)
    if config.order != base.order:  # then main.py does not take the spacing of the checkpoint either
        base.spacing = 'auto'
    changed = [key for key in keys(*ROLES) if getattr(config, key) != getattr(base, key)]
    return shlex.join(['python', 'main.py', *words(vars(config), changed)])


def address(opened, **more):
    """Return the query parameters that restore the session."""
    state, base = st.session_state, suggested(opened.config)
    config = chosen(opened)
    query = {'ckpt': state.ckpt, 'weights': state.weights, 'lang': state.lang, 'view': state.view}
    query |= {name: getattr(config, name) for name in FLAGS if getattr(config, name) != getattr(base, name)}
    query |= {name: state[name] for name in START if state.get(name, START[name]) != START[name]}
    return {name: str(value) for name, value in {**query, **more}.items() if value is not None}


def same_again(opened, configs, query, resting=True):
    """Show the command line of each config, and the link with these query parameters, which the browser shows too.

    resting: whether to change what the browser shows.
    """
    with st.expander(say('same_again')):
        for config in configs:
            st.code(command(config, opened), language='bash', wrap_lines=True)
        st.code(f'{(st.context.url or "").partition("?")[0]}?{urlencode(query)}', language=None, wrap_lines=True)
    if resting:
        st.query_params.from_dict(query)
