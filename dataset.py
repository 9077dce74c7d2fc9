"""Data sets of images, named or any folder or zip, item by item; and of points in the plane."""

import contextlib
import hashlib
import io
import logging
import math
import os
import re
import zipfile
from collections.abc import Callable
from functools import partial
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
FORMATS = ('PNG', 'JPEG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'PPM')  # others, such as EPS, would start programs
FILE_BYTES, PIXELS = 2**28, 2**26  # of an image: decoding it takes a few times as much memory
RUN_PICTURE = re.compile(r'(?<![^/])((sample|figures)/[^/]+|nll|samples_(ema|net))\.png$')  # beside its ckpt.pt
GREY_MODES = ('1', 'L', 'LA', 'I', 'I;16', 'I;16B')


class DataError(Exception):
    """A data set or an image that cannot be read; the message is one line that names it."""


class Source(NamedTuple):
    open: Callable  # (data_dir, 'train' or 'test') -> indexable items (PIL image, label), or arrays (x [N, 2], y [N])
    channels: int  # of an image, or coordinates of a point
    num_classes: int  # 0 where there are no labels
    size: int | None = None  # of every image, where they have one
    crop: int | None = None  # side of the centre crop taken before resizing; None for the largest square
    points: bool = False
    database: Callable = None  # (data_dir, split) -> the path of a file that the user brings; others are downloaded


def _torchvision(name, *properties):
    kind = getattr(torchvision.datasets, name)
    return Source(lambda root, split: kind(root, train=split == 'train', download=True), *properties)


def _celeba(root, split):
    return torchvision.datasets.CelebA(root, split, download=True)


def _lsun(train, test):
    def folder(root, split):
        return os.path.join(root, 'lsun', test if split == 'test' else train)

    return Source(
        lambda root, split: LMDB(folder(root, split)),
        3,
        0,
        database=lambda root, split: os.path.join(folder(root, split), 'data.mdb'),
    )


def _digits(root, split):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    test = np.arange(len(images)) % 5 == 4  # the set has no split of its own
    kept = test if split == 'test' else ~test
    return [(Image.fromarray(image), int(label)) for image, label in zip(images[kept], labels[kept], strict=True)]


def _points(name, num_classes, columns=(0, 1), centre=(0, 0), scale=10, **kwargs):
    """10,000 points of scikit-learn's make_<name>, brought near the origin; the test split is another draw of them."""

    def draw(root, split):
        from sklearn import datasets

        x, y = getattr(datasets, f'make_{name}')(10**4, random_state=int(split == 'test'), **kwargs)
        return (x[:, columns] - np.array(centre)) / scale, y

    return Source(draw, 2, num_classes, points=True)


DATASETS = {
    'cifar10': _torchvision('CIFAR10', 3, 10, 32),
    'mnist': _torchvision('MNIST', 1, 10, 28),
    'fashion_mnist': _torchvision('FashionMNIST', 1, 10, 28),
    'celeba': Source(_celeba, 3, 0, crop=140),
    'lsun_bedroom': _lsun('bedroom_train_lmdb', 'bedroom_val_lmdb'),
    'lsun_church_outdoor': _lsun('church_outdoor_train_lmdb', 'church_outdoor_val_lmdb'),
    'lsun_cat': _lsun('cat', 'cat'),  # an object category: distributed without a split
    'digits': Source(_digits, 1, 10, 8),
    's_curve': _points('s_curve', 0, columns=(0, 2), noise=0.1),
    'moons': _points('moons', 2, centre=(0.5, 0.25), noise=0.05),
    'circles': _points('circles', 2, noise=0.05, factor=0.5),
    'swiss_roll': _points('swiss_roll', 0, columns=(0, 2), scale=100, noise=0.5),
}


class LMDB:
    """Items (PIL image, 0) of a database of image files, in the order of its keys.

    torchvision's would unpickle a list of keys from whatever file of its name lies in the working folder.
    """

    def __init__(self, path):
        import lmdb

        self._open = partial(lmdb.open, path, readonly=True, lock=False, readahead=False, meminit=False)
        self._handle = None, None  # (process, its environment), which forked workers cannot share
        with self._transaction() as transaction:
            self.keys = list(transaction.cursor().iternext(values=False))

    def _transaction(self):
        if self._handle[0] != os.getpid():
            self._handle = os.getpid(), self._open()
        return self._handle[1].begin()

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, i):
        with self._transaction() as transaction:
            return Image.open(io.BytesIO(transaction.get(self.keys[i])), formats=FORMATS), 0


class ImageFiles:
    """Items (PIL image, label) of a folder or zip, any nesting; the first folder level is the class.

    `classes` is empty, and every label 0, unless each image lies in a folder. Raises DataError where there is no image.
    """

    def __init__(self, path):
        self.path = path
        self._handle = None, None  # (process, its open archive): a handle shared by forked workers would mix up reads
        if os.path.isdir(path):
            self._is_zip = False
            names = [
                os.path.relpath(os.path.join(folder, name), path)
                for folder, _, files in os.walk(path, followlinks=True)
                for name in files
            ]
        else:
            self._is_zip = True
            try:
                names = self._archive().namelist()
            except Exception as error:  # a broken table of contents makes zipfile raise nearly anything
                raise DataError(f'cannot read {path} as a zip of images: {error}') from error
        self.names = _images(names, path)
        if not self.names:
            raise DataError(f'no images in {path}: expected files ending in {" ".join(EXTENSIONS)}')
        tops = [name.replace(os.sep, '/').partition('/') for name in self.names]
        self.classes = sorted({top for top, _, _ in tops}) if all(slash for _, slash, _ in tops) else []
        number = {top: i for i, top in enumerate(self.classes)}
        self.labels = [number.get(top, 0) for top, _, _ in tops]

    def __getstate__(self):
        return self.__dict__ | {'_handle': (None, None)}

    def _archive(self):
        if self._handle[0] != os.getpid():
            self._handle = os.getpid(), zipfile.ZipFile(self.path)
        return self._handle[1]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        if self._is_zip:
            info = self._archive().getinfo(self.names[i])
            size, file = info.file_size, self._archive().open(info)
        else:
            file = os.path.join(self.path, self.names[i])
            size = os.path.getsize(file)
        if not 0 < size <= FILE_BYTES:
            raise ValueError(f'a file of {size} bytes')
        image = Image.open(file, formats=FORMATS)
        if image.width * image.height > PIXELS:
            raise ValueError(f'{image.width}x{image.height} pixels are more than {PIXELS}')
        return image, self.labels[i]

    def identity(self):
        """{'from': resolved path, 'count', 'files': a digest of names and sizes, with times or, in a zip, CRCs}.

        No file is read. Times of modification count since uncompressed images of one shape are files of one size; a
        copy elsewhere is another path anyway. What goes unnoticed: a file written anew with its size and time kept.
        """
        digest = hashlib.sha256()
        for name in self.names:
            if self._is_zip:
                info = self._archive().getinfo(name)
                marks = info.file_size, info.CRC
            else:
                status = os.stat(os.path.join(self.path, name))
                marks = status.st_size, int(status.st_mtime)  # some file systems keep no more than seconds
            digest.update(repr((name.replace(os.sep, '/'), *marks)).encode(errors='surrogateescape'))
        return {'from': os.path.realpath(self.path), 'count': len(self), 'files': digest.hexdigest()}

    def looks_grey(self):
        """Whether 64 images spread over the set are all stored without colour."""
        picked = {len(self) * k // 64 for k in range(64)}
        return all(read_item(self, i, lambda image, _: image.mode in GREY_MODES) for i in picked)


def _is_image(name):
    parts = name.replace(os.sep, '/').split('/')
    return name.lower().endswith(EXTENSIONS) and not any(part.startswith(('.', '__MACOSX')) for part in parts)


def _images(names, path):
    """The images among the files of a folder or zip, sorted; of the pictures that this program writes, samples alone.

    Raises DataError if its samples lie among other images, or a run with its previews and figures does.
    """
    images, present = sorted(name for name in names if _is_image(name)), set(names)

    def beside(name, other):
        return name.removesuffix(os.path.basename(name)) + other in present

    grids = {name for name in images if os.path.basename(name) == 'grid.png' and beside(name, '000000.png')}
    if grids:
        logging.info('%s: leaving out %s, a picture of the images beside it', path, ', '.join(sorted(grids)))
    images = [name for name in images if name not in grids]
    for name in images:
        if beside(name, 'samples.json') and not re.fullmatch(r'\d+\.png', os.path.basename(name)):
            raise DataError(f'{path}: {name} is no sample, but lies among those of --sample: move it elsewhere')
        run = RUN_PICTURE.sub('ckpt.pt', name.replace(os.sep, '/'))
        if run != name and {run, run.replace('/', os.sep)} & present:
            raise DataError(f'{path}: {name} is a picture that a run has drawn: name a folder of images alone')
    return images


def read_item(items, i, use):
    """use(image, label) of item i. Raises DataError, naming the image, where it cannot be decoded."""
    try:
        image, label = items[i]
        with image:
            return use(image, label)
    except Exception as error:  # decoders raise whatever a broken file leads them to
        name = f'{items.path}: {items.names[i]}' if isinstance(items, ImageFiles) else f'image {i} of the data set'
        raise DataError(f'{name} cannot be decoded ({error})') from error


def upright(image, channels):
    """A PIL image as its metadata turns it, in 8 bits, grey (1 channel) or RGB (3)."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I'):  # 16 bits a pixel
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert('L' if channels == 1 else 'RGB')


class Images:
    """A data set as uint8 images [channels, img_size, img_size] and labels; `num_classes` is 0 where it has none."""

    unit = 'images'

    def __init__(self, items, channels, num_classes, img_size, crop=None):
        self.items, self.channels, self.num_classes = items, channels, num_classes
        self.img_size, self.crop = img_size, crop
        self.nbytes = len(items) * channels * img_size**2

    def __len__(self):
        return len(self.items)

    def identity(self):
        """What these images are, as JSON can keep it, for a cache made from them to be checked by."""
        return {
            **self.items.identity(),
            'img_size': self.img_size,
            'channels': self.channels,
            'classes': self.items.classes,
        }

    def _decode(self, image, label):
        image = upright(image, self.channels)
        if self.crop:
            left, top = (image.width - self.crop) // 2, (image.height - self.crop) // 2
            image = image.crop((left, top, left + self.crop, top + self.crop))
        if image.size != (self.img_size, self.img_size):
            image = ImageOps.fit(image, (self.img_size, self.img_size), Image.Resampling.BICUBIC)
        pixels = np.asarray(image).reshape(self.img_size, self.img_size, self.channels)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), label

    def __getitem__(self, i):
        return read_item(self.items, int(i), self._decode)

    def __getitems__(self, indices):
        """A batch for DataLoader: (uint8 [B, C, H, W], labels), or the DataError for the loop to raise in one line."""
        try:
            images, labels = zip(*(self[i] for i in indices), strict=True)
        except DataError as error:
            return error
        return torch.stack(images), torch.tensor(labels) if self.num_classes else None

    def prepare(self, x, flip=None):
        """uint8 [B, C, H, W] -> float in [-1, 1], mirrored where `flip`, bool [B]."""
        x = x.float() / 127.5 - 1
        return x if flip is None else torch.where(flip[:, None, None, None], x.flip(3), x)


class Points:
    """A data set as float32 points [N, channels] and labels, with what a loop asks of `Images`."""

    unit = 'points'

    def __init__(self, x, y, num_classes):
        self.x, self.y = torch.from_numpy(x).float(), torch.from_numpy(y)
        self.channels, self.num_classes, self.nbytes = x.shape[1], num_classes, self.x.nbytes

    def __len__(self):
        return len(self.x)

    def __getitems__(self, indices):
        """A batch for DataLoader: (float32 [B, channels], labels)."""
        return self.x[indices], self.y[indices] if self.num_classes else None

    def prepare(self, x, flip=None):
        """The points as they are."""
        return x


def load(name, data_dir, img_size, split='train'):
    """The `Images`, or `Points`, of a name in `DATASETS`, downloaded to `data_dir` where torchvision can, or of a path.

    name: of a data set, or the path of a folder or zip of images. split: train or test, of a name; a path has none.

    Raises DataError where there is none, or it cannot be downloaded or read.
    """
    if name in DATASETS:
        source = DATASETS[name]
        try:
            items = source.open(data_dir, split)
        except ImportError as error:
            raise DataError(f'{name} needs a package: pip install -r requirements-data.txt ({error})') from error
        except Exception as error:  # torchvision, its downloaders and lmdb raise many kinds
            reason = (str(error).strip().splitlines() or [repr(error)])[0]
            raise DataError(f'cannot download or open {name} in {data_dir}: {reason}') from error
        if source.points:
            return Points(*items, source.num_classes)
        return Images(items, source.channels, source.num_classes, img_size, source.crop)
    if not os.path.exists(name):
        raise DataError(f'dataset {name} is neither a folder or zip that exists nor one of {", ".join(DATASETS)}')
    files = ImageFiles(name)
    return Images(files, 1 if files.looks_grey() else 3, len(files.classes), img_size)


def read_images(path):
    """How many images a folder, zip or npz (arr_0, uint8 [N, H, W, C]) holds, and batches of them, uint8 [n, C, H, W].

    Images keep their size; neighbours of one size make a batch. Raises DataError.
    """
    if path.endswith('.npz'):
        return _read_npz(path)
    if not os.path.exists(path):
        raise DataError(f'no images at {path}')
    files = ImageFiles(path)
    channels = 1 if files.looks_grey() else 3
    decoded = (read_item(files, i, lambda image, _: np.atleast_3d(upright(image, channels))) for i in range(len(files)))
    runs = groupby(decoded, key=lambda pixels: pixels.shape)
    return len(files), (
        torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
        for _, run in runs
        for batch in iter(lambda run=run: list(islice(run, 128)), [])
    )


def _read_npz(path):
    # Not np.load, which would read it all: 50,000 images of 256x256 are 10 GB.
    def header(file):
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return shape, dtype

    def stream():
        with opened() as archive, archive.open('arr_0.npy') as file:
            header(file)
            for start in range(0, shape[0], 128):
                block = (min(128, shape[0] - start), *shape[1:])
                pixels = np.frombuffer(bytearray(file.read(math.prod(block))), np.uint8).reshape(block)
                yield torch.from_numpy(pixels).permute(0, 3, 1, 2)

    @contextlib.contextmanager
    def opened():
        try:
            with zipfile.ZipFile(path) as archive:
                yield archive
        except Exception as error:  # as above
            raise DataError(f'{path} is no npz of images (arr_0, uint8 [N, H, W, C]): {error}') from error

    with opened() as archive, archive.open('arr_0.npy') as file:
        shape, dtype = header(file)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or not shape[0]:
        raise DataError(f'{path}: arr_0 must be uint8 [N, H, W, 1 or 3], not {dtype} {list(shape)}')
    return shape[0], stream()
