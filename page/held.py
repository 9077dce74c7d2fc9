"""Hold the values of widgets of a fragment, so that neither the page nor the browser loses one.

Two things go wrong otherwise. A click may be under way while the page itself changes the value of a widget. And
Streamlit may tell the browser that a run has ended without the elements of the fragment, if it had not sent them yet
when the next run of the fragment began: the browser then forgets what those widgets hold, and later shows defaults.
So the value is an entry of the session that no widget has for its key, and is the default of the widget.
"""

import streamlit as st


def by(name, value, change=None, identity=()):
    """Return the arguments that make a widget show `value`, beside the value itself, which must be its default.

    change: called with the value that a visitor has chosen; by default it becomes the entry `name` of the session.
    identity: what else makes the widget another one, such as its bounds or the language of its options.

    The key is a new one if the page itself has changed the value. A new widget takes its default, which the browser
    cannot miss, and what an older one still brings is left out.
    """
    state, identity = st.session_state, tuple(identity)
    number, before = state.setdefault('numbers', {}).get(name, (0, None))
    if before != identity or state.get(f'{name} {number}') != value:
        number += 1
        state.numbers[name] = number, identity
    key = f'{name} {number}'
    change = change or (lambda value: state.update({name: value}))
    return {'key': key, 'on_change': _changed, 'args': (key, change)}


def _changed(key, change):
    name, number = key.split()
    if st.session_state.numbers[name][0] == int(number):
        change(st.session_state[key])
