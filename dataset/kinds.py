"""Register the kinds of files that images are read from, one entry each, and open what lies at a path."""

import os
from collections.abc import Callable
from typing import NamedTuple

from dataset import originals
from dataset.arrays import read_arrays, splits_of_arrays
from dataset.files import EXTENSIONS, DataError, ImageFiles, files_below, is_hidden
from dataset.parquet import Parquet
from dataset.splits import check_classes, chosen, splits_by_name


class Kind(NamedTuple):
    """A kind of files. The names of files are those below their folder."""

    takes: Callable  # name of a file -> whether it is one of them
    open: Callable  # (path, names of the chosen split, what to say of the split) -> items, as dataset/files.py says
    splits: Callable = lambda path, names: {'': names}  # (path, names) -> {split: names}, '' for all if there are none
    alone: bool = True  # whether the path of a file is taken, and means that file alone
    in_folders: bool = True  # whether a folder is taken


def _ends(*endings):
    return lambda name: name.lower().endswith(endings)


def _images(path, names, note):
    return _by_folders(path if os.path.isdir(path) else os.path.dirname(path) or os.curdir, names)


def _by_folders(path, names=None):
    items = ImageFiles(path, names)
    check_classes(path, items.classes)
    return items


def _is_parquet(name):
    return name.lower().endswith('.parquet') and os.path.basename(name) != 'metadata.parquet'  # beside image files


KINDS = {
    'images': Kind(_ends(*EXTENSIONS), _images),
    'parquet files': Kind(_is_parquet, Parquet, splits_by_name),
    'arrays': Kind(_ends('.npz', '.npy'), read_arrays, splits_of_arrays, in_folders=False),
    'files of MNIST': Kind(
        originals.MNIST_FILE.fullmatch,
        originals.read_mnist,
        originals.splits_of_originals(originals.MNIST_FILE),
        alone=False,
    ),
    'files of CIFAR-10': Kind(
        originals.CIFAR10_FILE.fullmatch,
        originals.read_cifar10,
        originals.splits_of_originals(originals.CIFAR10_FILE),
        alone=False,
    ),
}
ZIP = Kind(None, lambda path, names, note: _by_folders(path))  # a file of none of these kinds is taken as one


def splits(path):
    """Return the splits that a path has, an empty list if there are none. Raise DataError as `open_files`."""
    kind, names = _kind(path)
    found = kind.splits(path, names)
    return list(found) if len(found) > 1 else []


def open_files(path, split=None):
    """Return the items at a path. split: which of its splits, if it has several.

    Raise DataError if there is nothing at the path, if it holds files of several kinds, if its splits are not clear or
    lack that one, or if it cannot be read.
    """
    kind, names = _kind(path)
    found = kind.splits(path, names)
    key, note = chosen(path, found, split)
    return kind.open(path, found[key], note)


def _kind(path):
    """Return the `Kind` of what lies at a path, and the names of its files."""
    if not os.path.exists(path):
        raise DataError(f'no images at {path}: there is no such file or folder')
    if not os.path.isdir(path):
        name = os.path.basename(path)
        kind = next((kind for kind in KINDS.values() if kind.takes(name)), ZIP)
        if not kind.alone:
            raise DataError(f'{path} is one of several files: name the folder that it lies in')
        return kind, [name]
    try:
        below = [name for name in files_below(path) if not any(map(is_hidden, name.split(os.sep)))]
    except OSError as error:
        raise DataError(f'cannot read {path} as a folder of images: {error}') from error
    plain = [name.replace(os.sep, '/') for name in below]
    found = {what: list(filter(kind.takes, plain)) for what, kind in KINDS.items() if kind.in_folders}
    found = {what: names for what, names in found.items() if names}
    if len(found) > 1:
        raise DataError(f'{path} holds {" and ".join(found)}: name a file or folder of one kind')
    ((what, names),) = found.items() or [('images', below)]
    return KINDS[what], below if what == 'images' else names
