"""Read image files from a folder, a zip or an LMDB item by item, with their classes, and survey their headers.

The items that this package reads from files are sequences of (PIL image, label) with these attributes: path; name(i),
what item i is called in messages; classes, the names of the labels, or no_classes, the reason why there are none;
labels; identity(), what they were read from. note, if there is one, says more of what was found.
"""

import contextlib
import hashlib
import io
import logging
import os
import re
import unicodedata
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataset.decode import GREY_MODES, Refused, bits, decode, eight_bits, shown_size

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
UNREAD = ('.heic', '.heif', '.avif', '.jxl', '.jp2', '.svg', '.psd', '.tga', '.dng', '.cr2', '.cr3', '.nef', '.arw')
FORMATS = ('PNG', 'JPEG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'PPM')  # for others, such as EPS, Pillow starts programs
FILE_BYTES, PIXELS = 2**28, 2**26  # limits for an image: decoding takes a few times as much memory
HEADERS, LOOKED_AT = 4096, 64  # the most images that a survey opens and decodes
DARK = 2**6  # the 8-bit grey that 16-bit images must reach: darker ones may hold the 10, 12 or 14 bits of a camera
RUN_PICTURE = re.compile(r'(?<![^/])((sample|figures)/[^/]+|nll|samples_(ema|net))\.png$')  # beside a ckpt.pt
BLANK = 8  # an image whose values differ by less counts as one shade


class DataError(Exception):
    """A data set or an image that cannot be read. The message is one line that names it."""


class LMDB:
    """The items (PIL image, 0) of a database of image files, in the order of its keys.

    torchvision's LSUN is not used: it unpickles a list of keys from any file with the expected name in the working
    folder.
    """

    def __init__(self, path):
        self.path = path
        with self._transaction() as transaction:
            self.keys = list(transaction.cursor().iternext(values=False))
        if not self.keys:
            raise ValueError('the database is empty')

    @contextlib.contextmanager
    def _transaction(self):
        # Open it for each read, which takes 0.1 ms: a process may open it only once, and a fork inherits what is open.
        import lmdb

        options = {'readonly': True, 'lock': False, 'readahead': False, 'meminit': False}
        with lmdb.open(self.path, **options) as environment, environment.begin() as transaction:
            yield transaction

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, i):
        with self._transaction() as transaction:
            return Image.open(io.BytesIO(transaction.get(self.keys[i])), formats=FORMATS), 0


class ImageFiles:
    """The items (PIL image, label) of a folder or zip with any nesting; the first folder level is the class.

    A folder that only wraps the folders of classes, as zips often have one, does not count. `classes` is in natural
    order. If an image lies in no folder, `classes` is empty and every label is 0. names: those of the files of a
    folder, None for a zip.

    Raise DataError if there is no image, or the zip cannot be read.
    """

    def __init__(self, path, names=None):
        self.path, self._is_zip = path, names is None
        self._handle = None, None  # (process, its open archive): forked workers that share a handle would mix up reads
        self.names = self._images(self._unhidden() if self._is_zip else names)
        if not self.names:
            raise DataError(f'no images in {path}: expected files ending in {" ".join(EXTENSIONS)}')
        folders = [self._parts(name)[:-1] for name in self.names]
        wrapped = len(os.path.commonprefix(folders))
        depth = wrapped if all(len(within) > wrapped for within in folders) else 0
        tops = [unicodedata.normalize('NFC', ''.join(within[depth : depth + 1])) for within in folders]
        self.classes = sorted(set(tops), key=natural) if all(tops) else []
        stray = any(tops) and not all(tops)
        self.no_classes = f'as {self.names[tops.index("")]} lies in no folder' if stray else ''
        number = {top: i for i, top in enumerate(self.classes)}
        self.labels = [number.get(top, 0) for top in tops]

    def __getstate__(self):
        return self.__dict__ | {'_handle': (None, None)}

    def _unhidden(self):
        try:
            names = set(self._archive().namelist())
        except Exception as error:  # a broken table of contents makes zipfile raise nearly anything
            raise DataError(f'cannot read {self.path} as a zip of images: {error}') from error
        return [name for name in names if not any(map(is_hidden, self._parts(name)))]

    def _archive(self):
        if self._handle[0] != os.getpid():
            self._handle = os.getpid(), zipfile.ZipFile(self.path)
        return self._handle[1]

    def _parts(self, name):
        if not self._is_zip:
            return name.split(os.sep)
        return re.split(r'[/\\]', re.sub(r'^(\.[/\\])+', '', name))  # some are written with backslashes, or with ./

    def _images(self, names):
        """Return the images among all files, sorted. Among the pictures that this program writes, take only samples.

        Raise DataError if other images lie among samples, or if the previews or figures of a run are there.
        """
        present = {'/'.join(self._parts(name)) for name in names}

        def beside(name, other):
            return '/'.join([*self._parts(name)[:-1], other]) in present

        images, grids = [], []
        for name in sorted(name for name in names if name.lower().endswith(EXTENSIONS)):
            *_, last = self._parts(name)
            if last == 'grid.png' and beside(name, '000000.png'):
                grids.append(name)
                continue
            if beside(name, 'samples.json') and not re.fullmatch(r'\d+\.png', last):
                raise DataError(
                    f'{self.path}: {name} is no sample, but lies among those of --sample: move it elsewhere'
                )
            whole = '/'.join(self._parts(name))
            run = RUN_PICTURE.sub('ckpt.pt', whole)
            if run != whole and run in present:
                raise DataError(f'{self.path}: {name} is a picture that a run has drawn: name a folder of images only')
            images.append(name)
        if grids:
            logging.info('%s: leaving out %s, a picture of the images beside it', self.path, ', '.join(grids))
        if unread := sorted(name for name in names if name.lower().endswith(UNREAD)):
            n = f'{len(unread)} file{"s"[: len(unread) != 1]}'
            text = '%s: leaving out %s of formats that are not read, such as %s: convert to PNG or JPEG'
            logging.warning(text, self.path, n, unread[0])
        return images

    def identity(self):
        """Return what `identity_of` does, with the CRCs of a zip in place of the times."""

        def marks(name):
            if self._is_zip:
                info = self._archive().getinfo(name)
                return info.file_size, info.CRC
            return file_marks(os.path.join(self.path, name))

        return identity_of(self.path, len(self), [('/'.join(self._parts(name)), *marks(name)) for name in self.names])

    def name(self, i):
        """Return the name of item i within the folder or zip."""
        return self.names[i]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        if self._is_zip:
            info = self._archive().getinfo(self.names[i])
            size, file = info.file_size, self._archive().open(info)
        else:
            file = os.path.join(self.path, self.names[i])
            size = os.path.getsize(file)
        return open_image(file, size), self.labels[i]


def open_image(file, size):
    """Return the PIL image in a file, or at a path, of `size` bytes. Raise ValueError if it is empty or too large."""
    if not 0 < size <= FILE_BYTES:
        raise ValueError(f'a file of {size} bytes')
    image = Image.open(file, formats=FORMATS)
    image.filename = ''  # else Pillow maps the file into memory, and gives a rotated one the wrong shape
    if image.width * image.height > PIXELS:
        raise ValueError(f'{image.width}x{image.height} pixels are more than {PIXELS}')
    return image


def identity_of(path, count, marks):
    """Return {'from': resolved path, 'count': of items, 'files': a digest of names, sizes and times}.

    marks: tuples of the name of a file and its `file_marks`. No file is read. The times are included because
    uncompressed images of one shape have one size; a copy elsewhere has another path anyway. A file that is rewritten
    with the same size and time goes unnoticed.
    """
    digest = hashlib.sha256()
    for mark in marks:
        digest.update(repr(mark).encode(errors='surrogateescape'))
    return {'from': os.path.realpath(path), 'count': count, 'files': digest.hexdigest()}


def file_marks(path):
    """Return the size of a file and the second of its last change: some file systems keep only whole seconds."""
    status = os.stat(path)
    return status.st_size, int(status.st_mtime)


def is_hidden(part):
    """Return whether a part of a path is that of a hidden file or folder, or of those that macOS adds to zips."""
    return part.startswith(('.', '__MACOSX'))


def files_below(root):
    """Return the names of all files below a folder. Follow links, except those that lead back to a parent folder."""

    def walk(folder, above):
        real = Path(os.path.realpath(folder))
        if any(real == inner or real in inner.parents for inner in above):
            logging.warning('%s leads back to a folder that it lies in, and is left out', folder)
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path)):
                    yield from walk(entry.path, (*above, real))
                else:
                    yield os.path.relpath(entry.path, root)

    return list(walk(root, ()))


def natural(name):
    """Return a sorting key that puts 2 before 10."""
    digits = [part.lstrip('0') for part in re.split('([0-9]+)', name)]
    return [(len(part), part) if i % 2 else part for i, part in enumerate(digits)], name


def read_item(items, i, use):
    """Return use(image, label) for item i. Raise DataError, naming the image, if it cannot be decoded or is refused."""
    name = f'{items.path}: {items.name(i)}' if hasattr(items, 'name') else f'image {i} of the data set'
    try:
        image, label = items[i]
        with image:
            return use(image, label)
    except Refused as error:
        raise DataError(f'{name} {error}') from error
    except Exception as error:  # a broken file can make a decoder raise nearly anything
        raise DataError(f'{name} cannot be decoded ({str(error) or type(error).__name__})') from error


def spread(indices, n):
    """Return n of a sequence of indices, evenly spread, or all if there are fewer."""
    return [indices[len(indices) * k // n] for k in range(n)] if len(indices) > n else list(indices)


class Survey(NamedTuple):
    sizes: list  # (width, height) of each image looked at
    grey: bool  # whether all of them are stored without colour
    transparent: bool  # whether any of them has an alpha channel or a transparent colour


def survey(items, background='white'):
    """Return a `Survey` of image files from the headers of up to HEADERS of them, evenly spread.

    They are among the indices `items.looked_at`, if it has them: those that are near each other in its files.

    Decode up to LOOKED_AT and warn, naming some, if more than a tenth are blank. Raise DataError if one cannot be read,
    or if there are images of 16 bits and none reaches a quarter of white: 12-bit values in 16 bits would be black.
    """

    def header(image, _):
        return shown_size(image), image.mode in GREY_MODES, image.has_transparency_data, bits(image) > 8

    def brightest(image, _):
        image = eight_bits(image)
        bands = image.getextrema() if len(image.getbands()) > 1 else (image.getextrema(),)
        return max(high for _, high in bands[: 1 if image.mode == 'LA' else 3])

    def is_blank(image, _):
        image.draft(None, (64, 64))  # a smaller version of a JPEG will do
        return np.ptp(np.asarray(decode(image, 3, background)), axis=(0, 1)).max() < BLANK

    within = getattr(items, 'looked_at', range(len(items)))
    opened = spread(within, HEADERS)
    sizes, grey, transparent, deep = zip(*(read_item(items, i, header) for i in opened), strict=True)
    deep = [i for i, is_deep in zip(opened, deep, strict=True) if is_deep]
    if deep and all(read_item(items, i, brightest) < DARK for i in spread(deep, LOOKED_AT)):
        raise DataError(
            f'{items.path}: no image of 16 bits, such as {items.name(deep[0])}, has a value above {256 * DARK - 1} of '
            '65535: if the values use fewer bits, scale them to 16, else save the images in 8 bits'
        )
    looked_at = spread(within, LOOKED_AT)
    blank = [items.name(i) for i in looked_at if read_item(items, i, is_blank)]
    if len(blank) * 10 > len(looked_at):
        text = '%s: %d of %d images looked at are of one shade, such as %s'
        logging.warning(text, items.path, len(blank), len(looked_at), ', '.join(blank[:3]))
    return Survey(list(sizes), all(grey), any(transparent))
