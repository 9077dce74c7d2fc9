"""Read the original files of MNIST, which others use as well, and of CIFAR-10."""

import gzip
import io
import math
import os
import pickle
import re
import struct

import numpy as np

from dataset.arrays import Arrays
from dataset.files import DataError, file_marks
from dataset.named import CIFAR10

MNIST_FILE = re.compile(r'(?:.*/)?(?P<split>train|t10k)-(?P<part>images|labels)[-.]idx[13]-ubyte(?:\.gz)?')
CIFAR10_FILE = re.compile(r'(?:.*/)?(?P<split>data_batch_[1-5]|test_batch)(?:\.bin)?')
SPLITS = {'train': 'train', 't10k': 'test', 'data_batch': 'train', 'test_batch': 'test'}
# What the files of CIFAR-10 for Python need. numpy has moved one of them.
NEEDED = {
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
    **{(f'numpy.{core}.multiarray', '_reconstruct'): np.zeros(0).__reduce__()[0] for core in ('core', '_core')},
}


def splits_of_originals(pattern):
    """Return a function of (path, names) that returns {split: names}. Raise DataError if several folders have some."""

    def splits(path, names):
        folders = {os.path.dirname(name) or '.' for name in names}
        if len(folders) > 1:
            shown = ' '.join(sorted(folders))
            raise DataError(f'{path} holds {len(folders)} data sets: name one of its folders {shown}')
        found = {}
        for name in sorted(names):
            key = re.sub(r'_\d$', '', pattern.fullmatch(name)['split'])
            found.setdefault(SPLITS[key], []).append(name)
        return found

    return splits


def read_mnist(path, names, note):
    """Return the `Arrays` of idx files, of which the unpacked ones are preferred. Raise DataError if one is damaged."""
    parts = {}
    for name in sorted(names, reverse=True):  # .gz comes before the same without
        parts[MNIST_FILE.fullmatch(name)['part']] = name
    if 'images' not in parts:
        raise DataError(f'{path} has {" ".join(parts.values())}, but not the images')
    images, *labels = (_idx(path, parts[part]) for part in ('images', 'labels') if part in parts)
    if images.ndim != 3 or len(images) < 1:
        raise DataError(f'{path}: {parts["images"]} holds {list(images.shape)}, and not [N, H, W]')
    if labels and labels[0].shape != images.shape[:1]:
        raise DataError(f'{path}: {len(images)} images, and labels {list(labels[0].shape)}')
    return Arrays(path, images, labels[0] if labels else None, _marks(path, parts.values()), note=note)


def _idx(path, name):
    """Read an idx file of bytes: http://yann.lecun.com/exdb/mnist."""
    place = os.path.join(path, name)
    try:
        with gzip.open(place) if name.endswith('.gz') else open(place, 'rb') as file:
            zeros, kind, n = struct.unpack('>HBB', file.read(4))
            shape = struct.unpack(f'>{n}I', file.read(4 * n))
            content = file.read(math.prod(shape) + 1)
    except (OSError, EOFError, struct.error, OverflowError, MemoryError, gzip.zlib.error) as error:
        raise DataError(f'{place} cannot be read: {error}') from error
    if zeros or kind != 8:
        raise DataError(f'{place} is no idx file of bytes')
    if len(content) != math.prod(shape):
        more = 'more' if len(content) > math.prod(shape) else f'{len(content)}'
        raise DataError(f'{place} holds {more} values, its header says {math.prod(shape)}: get it anew')
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_cifar10(path, names, note):
    """Return the `Arrays` of the files of CIFAR-10, for C or for Python: rows of 32x32 red, green and blue bytes.

    Raise DataError if one of the five of training is not there, or if one is damaged or of another kind.
    """
    stems = [os.path.basename(name).removesuffix('.bin') for name in names]
    missing = {f'data_batch_{i}' for i in range(1, 6)}.difference(stems)
    if stems != ['test_batch'] and (missing or len(stems) != 5):
        raise DataError(f'{path} has {" ".join(names)}, not the five files of CIFAR-10 once each')
    rows, labels = zip(*(_batch(os.path.join(path, name)) for name in names), strict=True)
    x = np.concatenate(rows).reshape(-1, 3, 32, 32)
    return Arrays(path, x, np.concatenate(labels), _marks(path, names), (1, 2, 0), note, CIFAR10)


def _batch(place):
    """Return (rows uint8 [n, 3072], labels [n]) of a file of CIFAR-10."""
    with open(place, 'rb') as file:
        content = file.read()
    if place.endswith('.bin'):
        if not content or len(content) % 3073:
            raise DataError(f'{place} holds {len(content)} bytes, and not rows of 3073: get it anew')
        rows = np.frombuffer(content, np.uint8).reshape(-1, 3073)
        rows, labels = rows[:, 1:], rows[:, 0].astype(int)
    else:
        rows, labels = _unpickled(place, content)
    if not 0 <= labels.min() <= labels.max() < 10:
        raise DataError(f'{place} has labels from {labels.min()} to {labels.max()}, and CIFAR-10 those from 0 to 9')
    return rows, labels


class _Arrays(pickle.Unpickler):
    """Unpickles arrays and plain values, and nothing that could run code."""

    def find_class(self, module, name):
        if (module, name) not in NEEDED:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}')
        return NEEDED[module, name]


def _unpickled(place, content):
    try:
        batch = _Arrays(io.BytesIO(content), encoding='latin1').load()
        rows, labels = batch['data'], np.array(batch['labels'])
        fit = rows.shape == (len(labels), 3072) and len(labels)
        if not fit or rows.dtype != np.uint8 or labels.dtype.kind not in 'iu':
            raise ValueError(f'data is {rows.dtype} {list(rows.shape)}, labels {labels.dtype} {list(labels.shape)}')
    except Exception as error:  # a broken pickle can raise nearly anything
        raise DataError(f'{place} is no file of CIFAR-10 for Python: {error}') from error
    return rows, labels


def _marks(path, names):
    return [(name, *file_marks(os.path.join(path, name))) for name in names]
