"""Let a visitor choose what a walk begins with, and whether it completes images, and begin it."""

import io

import numpy as np
import streamlit as st

import edit
from dataset.files import EXTENSIONS
from draw import masks, picture
from draw.noise import of_images
from page import held, opening, pictures, settings
from page.texts import Stop, one_line, say
from page.walk import Walk, most_items
from run import build, hardware, labels
from run.config import replace

SOURCES = 'sources.npz'  # the name under which the images to complete are saved
EDIT = 'mask', 'resample', 'jump'  # flags of --edit=inpaint


def choose(opened, config):
    """Show what a walk begins with: noise, items of the training set or a file, and the mask to complete these under.

    Return the config, which has `edit` if the walk completes images.
    """
    state, side, points = st.session_state, st.sidebar, build.is_points(config)
    names = {'noise': say('start_noise'), 'image': say('start_points' if points else 'start_image')}
    if not points:
        names['upload'] = say('start_upload')
    side.radio(say('start'), list(names), key='start', format_func=names.get)
    if state.start == 'upload':
        side.file_uploader(say('file'), [name[1:] for name in EXTENSIONS], key='file')
    elif state.start == 'image':
        _choose_item(opened)
    if points or state.start == 'noise':
        return config
    settings.own(mask=('', None), resample=(config.resample, range(1, 101)), jump=(config.jump, range(1, 10**4)))
    height, width = build.shape(config)[1:]
    with side:
        _choose_mask(height, width)
    if not state.mask:
        return config
    side.number_input('resample', 1, 100, key='resample', help=say('resample_help'))
    side.number_input('jump', 1, 10**4 - 1, key='jump', help=say('jump_help'))
    flags = {name: state[name] for name in EDIT}
    variants = config.num_images if state.start == 'upload' else 1
    return replace(config, edit='inpaint', images=SOURCES, variants=variants, **flags)


def _choose_item(opened):
    """Let the visitor choose the class and the number of an item of the training set."""
    side = st.sidebar
    try:
        data, numbers = opening.training_data(opened.path, opened.modified, opened.config)
    except opening.FAULTS:
        return  # `begin` says why
    state, options = st.session_state, ['', *(data.classes if numbers is not None else [])]
    for name, fits in ('item_class', state.item_class in options), ('item', 0 <= state.item < len(data)):
        if not fits:
            st.warning(say('bad_link', why=f'{name}={state[name]}'))
            state[name] = settings.START[name]
    if numbers is not None:
        side.selectbox(say('item_class'), options, key='item_class', format_func=lambda name: name or say('any'))
    side.number_input(say('item'), 0, len(data) - 1, key='item')


def _choose_mask(height, width):
    """Let the visitor choose --mask: one of `MASKS`, with the share or the corners that go behind its colon."""
    state, options = st.session_state, ['', *masks.MASKS]
    name = state.mask.partition(':')[0]
    try:
        if state.mask and name not in options:
            raise ValueError(f'--mask={state.mask}')
        given = masks.given_by(state.mask, height, width) if name else None
    except ValueError as error:  # from an address, or of images of another size
        st.warning(say('bad_link', why=one_line(error)))
        state.mask = name = ''

    def change(name):
        state.mask = 'random:0.5' if name == 'random' else name

    how = {'format_func': lambda name: say(f'mask_{name}', otherwise=name), 'help': say('mask_help')}
    how |= held.by('mask_name', name, change, [state.lang])
    st.selectbox(say('mask'), options, options.index(name), **how)
    if name == 'random':
        how = held.by('share', given, lambda share: state.update(mask=f'random:{share:g}'))
        st.slider(say('share'), 0.05, 0.95, given, 0.05, **how)
    elif name == 'box':
        left, top, right, bottom = given or masks.middle(height, width)

        def corners(columns=(left, right), rows=(top, bottom)):
            if columns[0] < columns[1] and rows[0] < rows[1]:  # else the sliders go back
                state.mask = f'box:{columns[0]},{rows[0]},{columns[1]},{rows[1]}'

        how = held.by('columns', (left, right), corners, [width])
        st.slider(say('columns'), 0, width, (left, right), **how)
        how = held.by('rows', (top, bottom), lambda rows: corners(rows=rows), [height])
        st.slider(say('rows'), 0, height, (top, bottom), **how)


def key(config):
    """Return what makes a walk another one: the settings of the session and the start."""
    state = st.session_state
    place = (state.get('item_class'), state.get('item')) if state.start == 'image' else None
    file = getattr(state.get('file'), 'file_id', None) if state.start == 'upload' else None
    flags = [getattr(config, name) for name in (*settings.FLAGS, 'weights')]
    return *flags, state.start, place, file, [getattr(config, name) for name in EDIT] if config.edit else None


def begin(opened, config):
    """Return a new walk. Raise one of `opening.FAULTS`, or Stop, if there is nothing to start from."""
    state, n, shape, device = st.session_state, config.num_images, build.shape(config), hardware.device(config)
    noise = of_images(config, range(n))
    sampler = build.sampler(config, opened.model).to(device)
    rows = [i // config.variants for i in range(n)] if config.edit else range(n)
    y, x = labels.of_indices(config, rows), None
    if state.start == 'image':
        x = opening.real(opened, state.get('item_class'), state.get('item', 0), n)
    elif state.start == 'upload':
        if state.get('file') is None:
            raise Stop(say('choose_file'), 'info')
        x = opening.uploaded(config, state.file, 1 if config.edit else n)
    if not config.edit:
        return Walk(sampler, noise, y, x)
    sources = picture.to_uint8(x).cpu()
    try:
        known = masks.known(config.mask, config.images, len(sources), *shape[1:], config.seed)
        planned = edit.plan(config, sources, known)
    except ValueError as error:
        raise Stop(say('does_not_fit', why=one_line(error))) from error
    stops = planned.stops(sampler, config)
    if n > (most := most_items(len(stops), shape)):
        raise Stop(say('long_walk', states=len(stops), most=most))
    x_T, project = planned.begin(sampler, rows, noise())
    walk = Walk(sampler, noise, y, x_T, stops[0], project, stops)
    walk.sources, walk.source, walk.known = sources, planned.sources[rows], known[rows]
    return walk


def show_known(walk):
    """Show what is known of the images that a walk completes; what is drawn anew is grey."""
    st.sidebar.image(pictures.url(walk.canvas.draw(walk.source * walk.known, 240)), say('known'))


def npz(sources):
    """Return images, uint8 [N, C, H, W], as the bytes of an npz that --images takes."""
    file = io.BytesIO()
    np.savez_compressed(file, sources.permute(0, 2, 3, 1).numpy())
    return file.getvalue()
