"""Draw the figures of main.py by a button."""

import time

import streamlit as st

import figure
from page import opening, pictures, settings
from page.texts import Stop, one_line, say
from run import build
from run.config import replace
from run.errors import memory
from score import FEATURE_NETS, ScoreError

BETWEEN = 'states', 'codes'


def view(opened, config):
    """Show the choice of a figure, and the figure once the reader asks for it. A click elsewhere stops it."""
    state = st.session_state
    if build.is_points(config):
        st.info(say('no_figures'))
        return
    settings.own(
        figure=('progressive', figure.FIGURES),
        between=('states', BETWEEN),
        figure_t=(config.T // 2 or 1, range(1, config.T + 1)),
        feature_net=(config.feature_net, FEATURE_NETS),
    )
    kinds = [kind for kind in figure.FIGURES if kind != 'guidance' or config.num_classes]
    if state.figure not in kinds:
        state.figure = kinds[0]
    st.selectbox(say('figure'), kinds, key='figure', format_func=lambda kind: say(f'figure_{kind}', otherwise=kind))
    changes = {'figure': state.figure}
    if state.figure == 'interpolate':
        how = {'format_func': lambda name: say(f'between_{name}'), 'horizontal': True}
        changes['between'] = st.radio(say('between'), BETWEEN, key='between', **how)
        if state.between == 'states':
            changes['figure_t'] = st.slider(say('figure_t'), 1, config.T, key='figure_t')
    elif state.figure in ('nearest', 'distances'):
        changes['feature_net'] = st.selectbox(say('feature_net'), list(FEATURE_NETS), key='feature_net')
    config = replace(config, **changes)
    key = opened.path, opened.modified, vars(config)
    if st.button(say('draw'), type='primary'):
        state.figure_drawn = key, _draw(opened, config)
    if state.get('figure_drawn', (None,))[0] == key:
        drawn = state.figure_drawn[1]
        st.image(drawn)
        st.download_button('PNG', lambda: pictures.png(drawn), f'{config.figure}.png', 'image/png', on_click='ignore')
    settings.same_again(opened, [config], settings.address(opened, **changes))


def _draw(opened, config):
    """Return the figure. Raise Stop if it cannot be drawn."""
    place, began, shown = st.empty(), time.monotonic(), 0.0

    def interrupted():
        nonlocal shown
        if time.monotonic() - shown > 0.2:
            shown = time.monotonic()
            place.info(say('drawing', seconds=round(shown - began)))  # a click elsewhere ends the script here
        return False

    interrupted()
    try:
        with memory(say('fewer')):
            drawn = figure.FIGURES[config.figure](config, opened.net, interrupted)
    except (*opening.FAULTS, ScoreError) as error:
        raise Stop(say('cannot_draw', why=one_line(error))) from error
    finally:
        place.empty()
    return drawn
