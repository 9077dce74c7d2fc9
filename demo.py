"""Step through the diffusion of a checkpoint on a web page: streamlit run demo.py -- --ckpt logs/DIGITS/ckpt.pt

The page has three views. Walk steps through the reverse process p and the forward process q, and shows what each step
is made of; it has the controls of the demo of pesser/pytorch_diffusion. Compare draws with two settings from one noise.
Figures draws what `main.py --figure` draws. Streamlit runs this script anew at each click.
"""

import os

import streamlit as st

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # before torch: its waiting threads would keep the browser's busy

from page import compare, figures, settings, show
from page.texts import Stop, say

VIEWS = {'walk': show.view, 'compare': compare.view, 'figures': figures.view}


def page():
    """Show the page."""
    st.set_page_config('Step through a diffusion', layout='wide')
    settings.begin()
    st.markdown(f'### {say("title")}')
    try:
        opened = settings.checkpoint()
        settings.settle(opened)
        view = choose_view()
        view(opened, settings.choose(opened))
    except Stop as stop:
        getattr(st, stop.show)(str(stop))
        return
    size = sum(p.numel() for p in opened.net.parameters())
    st.caption(say('caption', path=opened.path, size=f'{size:,}', T=opened.config.T, step=opened.step))


def choose_view():
    """Show the choice of a view and return its function."""
    state, names = st.session_state, {name: say(f'view_{name}') for name in VIEWS}
    if 'view' not in state:
        wanted = state.kept.get('view') or state.link.pop('view', 'walk')
        state.view = wanted if wanted in VIEWS else 'walk'
    state.kept['view'] = state.view
    st.radio(say('view'), list(names), key='view', format_func=names.get, horizontal=True, label_visibility='collapsed')
    return VIEWS[state.view]


page()
