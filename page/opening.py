"""Find checkpoints, open them once for all visitors, and read the data sets that they were trained on."""

import argparse
import io
import os
import re
from pathlib import Path
from types import SimpleNamespace

import streamlit as st
import torch
from PIL import Image

import dataset
import main
from dataset import DataError, loader
from dataset.files import FORMATS, PIXELS, Survey
from draw import picture
from draw.inference import Inference
from page import pictures
from page.texts import Stop, one_line, say
from run import build, hardware, inputs
from run.checkpoint import CheckpointError
from run.errors import OutOfMemory
from run.restore import restore

CHECKPOINT = re.compile(r'ckpt(-\d+)?\.pt')  # not the spare ckpt.prev.pt, nor a damaged ckpt.bad.pt
FAULTS = CheckpointError, DataError, OSError, OutOfMemory, ValueError


def found():
    """Return {name on the page: path} of the checkpoints to choose from: that of --ckpt first, then those of --logs.

    Raise Stop if there is none.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--ckpt')
    parser.add_argument('--logs', default='logs')
    given, unknown = parser.parse_known_args()
    if unknown:
        st.error(say('unknown_arguments', words=' '.join(unknown)))
    below = (path for path in Path(given.logs).rglob('ckpt*.pt') if CHECKPOINT.fullmatch(path.name))
    ordered = sorted(below, key=lambda path: (path.parent, len(path.name), path.name))
    paths = {path.relative_to(given.logs).as_posix(): str(path) for path in ordered}
    if given.ckpt:
        first = os.path.join(given.ckpt, 'ckpt.pt') if os.path.isdir(given.ckpt) else given.ckpt
        same = [name for name, path in paths.items() if os.path.realpath(path) == os.path.realpath(first)]
        name = same[0] if same else first
        paths = {name: first, **paths}
    if not paths:
        raise Stop(say('no_checkpoint', folder=given.logs), 'info')
    return paths


def opened(path, weights):
    """Return `load` of the checkpoint as it is now, with `path`. Raise Stop if it cannot be used."""
    try:
        return load(path, os.stat(path).st_mtime_ns, weights)
    except FileNotFoundError as error:
        raise Stop(say('missing', path=path)) from error
    except FAULTS as error:
        raise Stop(say('unusable', why=one_line(error))) from error


@st.cache_resource(max_entries=8, show_spinner=False)
def load(path, modified, weights):
    """Return a checkpoint: path, modified, config, net, `model` (the network to draw with) and step.

    All visitors share it, and nobody changes it. `modified` makes a file that has changed load again.
    """
    if not main.FLAGS.is_parsed():
        main.FLAGS(['demo.py'])
    config, _ = main.configuration()
    config.ckpt, config.weights = path, weights
    config, net, step = restore(config, {'weights'})
    model = Inference(net, hardware.precision(config))
    return SimpleNamespace(path=path, modified=modified, config=config, net=net, model=model, step=step)


@st.cache_resource(max_entries=4, show_spinner=False)
def training_data(path, modified, _config):
    """Return the data set that a checkpoint was trained on, and the label of each item, or None if it has no labels.

    Raise DataError if it cannot be read, or is of other channels than the network.
    """
    data = inputs.dataset(_config)
    inputs.check_channels(_config, data)
    return data, _numbers(data)


def _numbers(data):
    if not data.num_classes:
        return None
    if isinstance(data, dataset.Points):
        return data.y
    raw = next((getattr(data.items, name) for name in ('labels', 'targets') if hasattr(data.items, name)), None)
    raw = [label for _, label in data.items] if raw is None else raw
    return torch.tensor([data.numbers[int(label)] for label in raw])


def real(opened, name, first, n):
    """Return n training items from the `first` one on, [n, ...] as the network sees them.

    name: their class, or '' for any. opened: from `load`. After the last item comes the first.

    Raise DataError if they cannot be read, ValueError if there is no such class.
    """
    data, numbers = training_data(opened.path, opened.modified, opened.config)
    rows = torch.arange(len(data))
    if name:
        rows = (numbers == data.classes.index(name)).nonzero()[:, 0]
    rows = rows[(first + torch.arange(n)) % len(rows)]
    return data.prepare(loader.pick(data, rows)).to(hardware.device(opened.config))


def uploaded(config, file, n):
    """Return n copies of an image file, [n, C, H, W] as the network sees it: cropped, resized, grey if it is grey.

    Raise DataError if it cannot be decoded or is too large.
    """
    try:
        image = Image.open(io.BytesIO(file.getvalue()), formats=FORMATS)
    except Exception as error:  # a broken file can make Pillow raise nearly anything
        raise DataError(f'{file.name} cannot be decoded ({error})') from error
    if image.width * image.height > PIXELS:
        raise DataError(f'{file.name}: {image.width}x{image.height} pixels are more than {PIXELS}')
    seen = Survey([image.size], config.channels == 1, transparent=False)
    how = {'background': config.background, 'keep_colour': False}
    data = dataset.Images([(image, 0)], seen, config.channels, (), config.img_size, **how)
    return data.prepare(loader.pick(data, [0])).expand(n, -1, -1, -1).to(hardware.device(config))


def canvases(opened, sampler):
    """Return what draws the states of a walk, and what draws noise of unit variance beside them.

    The axes of points hold the data and what the sampler starts from, by `picture.scale`.
    """
    if not build.is_points(opened.config):
        return pictures.Tiles(), pictures.Tiles()
    noise = sampler.start(torch.randn(4096, *build.shape(opened.config), generator=torch.Generator().manual_seed(0)))
    try:
        data = training_data(opened.path, opened.modified, opened.config)[0].x
    except FAULTS:
        data = None  # the page works without the density behind the points
    reach = picture.scale([noise] if data is None else [noise, data])
    dark = st.context.theme.type == 'dark'
    return pictures.Plane(data, reach, dark), pictures.Plane(None, 3.0, dark)
