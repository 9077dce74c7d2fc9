"""Read images and labels from the arrays of numpy, .npy and .npz. Nothing in them is unpickled."""

import contextlib
import math
import os
import zipfile

import numpy as np
import torch
from PIL import Image

from dataset.files import DataError, file_marks, identity_of, natural

# How an npz may name its images and labels, for a file without splits and for each split.
NAMES = {
    '': [('x', 'y'), ('arr_0', 'arr_1')],  # savez of two arrays without names makes the second
    'train': [('x_train', 'y_train')],
    'test': [('x_test', 'y_test')],
}


class Arrays:
    """The items (PIL image, label) of arrays: x, uint8 [N, ...]; y, integers or texts [N], or None.

    The classes are the values that occur, in natural order, unless `classes` names those from 0 on. axes: those of an
    image, in the order height, width and channels. marks: tuples of the name of each file and what tells whether it has
    changed. Raise DataError if y is no such array or has negative numbers.
    """

    def __init__(self, path, x, y, marks, axes=(0, 1), note='', classes=()):
        self.path, self.x, self.axes, self.marks, self.note = path, x, axes, marks, note
        self.classes, self.labels = list(classes), y
        if y is None:
            self.labels = np.zeros(len(x), int)
        elif not classes:
            self.classes, self.labels = numbered(y, len(x), path, self.name)

    def __getstate__(self):
        if isinstance(self.x, np.memmap):  # else the file would be copied to each process that is spawned
            order = 'C' if self.x.flags.c_contiguous else 'F'
            opened = self.x.filename, self.x.dtype, 'r', self.x.offset, self.x.shape, order
            return self.__dict__ | {'x': opened}
        return self.__dict__

    def __setstate__(self, state):
        self.__dict__ = state
        if isinstance(self.x, tuple):
            self.x = np.memmap(*self.x)

    def name(self, i):
        """Return what item i is called in messages."""
        return f'image {i}'

    def identity(self):
        """Return what `identity_of` does."""
        return identity_of(self.path, len(self), self.marks)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        pixels = np.ascontiguousarray(self.x[i].transpose(self.axes))
        return Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels), self.labels[i]


def numbered(values, n, path, name):
    """Return (classes, labels int [n]) of integers or texts [n]: the values that occur, and which each item has.

    name: a function that returns what item i is called. Raise DataError if they are of another type, or negative.
    """
    values = values.squeeze(1) if values.shape == (n, 1) else values
    if values.dtype.kind not in 'iuUb' or values.shape != (n,):
        raise DataError(
            f'{path}: the labels are {values.dtype} {list(values.shape)}: they must be integers or texts, [{n}]'
        )
    found, labels = np.unique(values, return_inverse=True)
    if found.dtype.kind == 'i' and len(found) and found[0] < 0:
        raise DataError(f'{path}: {name(int(np.argmax(values < 0)))} has the label {found[0]}: count labels from 0')
    texts = [str(value) for value in found.tolist()]
    classes = sorted(texts, key=natural)
    number = {text: i for i, text in enumerate(classes)}
    return classes, np.array([number[text] for text in texts], int)[labels]


def read_arrays(path, names, note):
    """Return the `Arrays` of an npy or npz. An npy is mapped into memory, an npz read into it.

    names: as `splits_of_arrays` gives them for a split. note: what to say of the split.

    Only uint8 is taken, [N, H, W], [N, H, W, 1 or 3] or [N, 1 or 3, H, W], and only if no other order is possible:
    floats and other integers do not say which values are black and white. Raise DataError for anything else.
    """
    is_npz = path.lower().endswith('.npz')
    with _explained(path), zipfile.ZipFile(path) if is_npz else open(path, 'rb') as file:
        if not is_npz:
            shape, by_columns, dtype = _header(file, os.path.getsize(path), path, _layout)
            axes, order = _layout(shape, dtype, path)
            x = np.memmap(path, dtype, 'r', file.tell(), shape, 'F' if by_columns else 'C')
            return Arrays(path, x, None, [file_marks(path)], axes, f', from {order}')
        x_name, y_name = names
        x = _member(file, path, x_name, _layout)
        axes, order = _layout(x.shape, x.dtype, f'{path}: {x_name}')
        y = _member(file, path, y_name) if y_name else None
        marks = [(name, file.getinfo(f'{name}.npy').CRC) for name in names if name]
    return Arrays(path, x, y, marks, axes, f', from {x_name} {order}{f" and {y_name}" * bool(y_name)}{note}')


def splits_of_arrays(path, _):
    """Return {split: names of its images and labels} of an npz, and {'': ()} of an npy. Raise DataError."""
    if not path.lower().endswith('.npz'):
        return {'': ()}
    with _explained(path), zipfile.ZipFile(path) as archive:
        return _names(archive, path)


def _names(archive, path):
    """Return {split: (name of the images, name of the labels or '')}. A single array is that of the images."""
    held = [name.removesuffix('.npy') for name in archive.namelist()]
    found = {
        split: (x, y if y in held else '') for split, pairs in NAMES.items() for x, y in reversed(pairs) if x in held
    }
    if not found and len(held) == 1:
        found = {'': (held[0], '')}
    if not found or ('' in found and len(found) > 1):
        known = ', '.join(x for pairs in NAMES.values() for x, _ in pairs)
        raise DataError(f'{path} holds {", ".join(held) or "nothing"}: name the images one of {known}, labels y')
    return found


def _member(archive, path, name, check=lambda *_: None):
    """Return an array of an npz, whose shape and dtype pass a check before it is read. zipfile checks its CRC."""
    info = archive.getinfo(f'{name}.npy')
    with archive.open(info) as file:
        shape, by_columns, dtype = _header(file, info.file_size, f'{path}: {name}', check)
        return np.frombuffer(file.read(), dtype).reshape(shape, order='F' if by_columns else 'C')


def _layout(shape, dtype, what):
    """Return the axes of an image in an array of images, in the order height, width and channels, and both in words.

    Raise DataError if the array is not of uint8, or more than one order is possible.
    """
    few = [axis for axis, length in enumerate(shape) if length in (1, 3) and axis]
    orders = {
        (3, ()): ((0, 1), '[N, H, W]'),
        (4, (3,)): ((0, 1, 2), '[N, H, W, C]'),
        (4, (1,)): ((1, 2, 0), '[N, C, H, W]'),
    }
    taken = orders.get((len(shape), tuple(few)))
    if taken is None or min(shape) < 1 or (len(shape) == 3 and shape[0] in (1, 3)):
        raise DataError(
            f'{what} is {list(shape)}, which is not clear: give many images, [N, H, W] or [N, H, W, 1 or 3], or more '
            'than 3 pixels wide and high'
        )
    if dtype != np.uint8:
        raise DataError(
            f'{what} is {dtype}, which does not say what is black and white: save it as uint8, from 0 to 255'
        )
    return taken


def stream_npz(path):
    """Return the shape of the images arr_0 of an npz, uint8 [N, H, W, 1 or 3], and batches of them, [n, C, H, W].

    They are read as they are needed: np.load would read the whole array, and 50,000 images of 256x256 are 10 GB.
    Raise DataError if there are none.
    """

    def stream():
        with _arr_0(path) as (file, _, by_columns, _):
            if by_columns:  # the first index runs fastest, so the first image needs the whole file
                stored = np.frombuffer(file.read(math.prod(shape)), np.uint8).reshape(shape[::-1]).T
            for start in range(0, shape[0], 128):
                block = (min(128, shape[0] - start), *shape[1:])
                if by_columns:
                    pixels = np.ascontiguousarray(stored[start : start + 128])
                else:
                    pixels = np.frombuffer(bytearray(file.read(math.prod(block))), np.uint8).reshape(block)
                yield torch.from_numpy(pixels).permute(0, 3, 1, 2)

    with _arr_0(path) as (_, shape, *_):
        return shape, stream()


def npz_identity(path):
    """Return what identifies the images of an npz, fit for JSON, as `Images.identity` does.

    img_size: their height and width. files: a checksum that the npz has of them. Raise DataError as `stream_npz`.
    """
    with _arr_0(path) as (_, (count, *img_size, channels), _, checksum):
        shape = {'count': count, 'img_size': img_size, 'channels': channels}
    return {'from': os.path.realpath(path), **shape, 'files': f'{checksum:08x}'}


@contextlib.contextmanager
def _arr_0(path):
    """Open the images arr_0 of an npz: (file, read up to the pixels; their shape, whether by columns, and CRC)."""

    def check(shape, dtype, what):
        if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or min(shape) < 1:
            raise DataError(f'{what} must be uint8 [N, H, W, 1 or 3], not {dtype} {list(shape)}')

    text = 'is no npz of images (arr_0, uint8 [N, H, W, C])'
    with _explained(path, text), zipfile.ZipFile(path) as archive, archive.open('arr_0.npy') as file:
        info = archive.getinfo('arr_0.npy')
        shape, by_columns, _ = _header(file, info.file_size, f'{path}: arr_0', check)
        yield file, shape, by_columns, info.CRC


def _header(file, size, what, check):
    """Read the header of an npy: (shape, whether it is in Fortran order, dtype).

    size: that of the whole npy in bytes. what: its name in messages. Raise ValueError if the header is broken, and
    DataError if it lies, or as check(shape, dtype, what) does.
    """
    one, two = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
    readers = {(1, 0): one, (2, 0): two, (3, 0): two}  # 3.0 differs only in how field names are encoded
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f'format {version} of npy')
    shape, by_columns, dtype = readers[version](file)
    if dtype.hasobject:
        raise DataError(f'{what} holds objects of Python, which are never unpickled: save numbers')
    check(shape, dtype, what)
    held, told = size - file.tell(), math.prod(shape) * dtype.itemsize
    if held != told:
        raise DataError(f'{what} holds {held} bytes, its header says {told}')
    return shape, by_columns, dtype


@contextlib.contextmanager
def _explained(path, text='cannot be read as arrays of numpy'):
    try:
        yield
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DataError(f'no images at {path}: there is no such file') from error
    except Exception as error:  # a broken file can raise nearly anything
        raise DataError(f'{path} {text}: {error}') from error
