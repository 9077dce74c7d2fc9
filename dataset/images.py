"""Load data sets of images, by name or from files of any kind, and data sets of points in the plane."""

import logging
import math
import os
from itertools import groupby, islice

import numpy as np
import torch
from PIL import Image, ImageOps

from dataset.arrays import stream_npz
from dataset.decode import decode
from dataset.files import DataError, Survey, read_item, spread, survey
from dataset.kinds import open_files
from dataset.named import DATASETS

BICUBIC = Image.Resampling.BICUBIC
# How an image gets another shape: (what happens to it, function of (PIL image, (width, height), colour of borders)).
FITS = {
    'crop': ('cropped', lambda image, size, colour: ImageOps.fit(image, size, BICUBIC)),
    'pad': ('padded in {}', lambda image, size, colour: ImageOps.pad(image, size, BICUBIC, colour)),
    'stretch': ('stretched', lambda image, size, colour: image.resize(size, BICUBIC)),
}


def fitted(name, fit, background):
    """Return the name of a data set with how its images are fitted, unless they are cropped: `mnist-pad-black`."""
    return '-'.join({'crop': [name], 'pad': [name, fit, background]}.get(fit, [name, fit]))


class Images:
    """A data set of uint8 images [channels, H, W] and labels, which index `classes`, if there are any.

    seen: the `Survey` of its images. img_size: an int if H = W, else [H, W]. fit: a key of `FITS`. crop: the side of
    the square to crop to, None for the largest. keep_colour: whether an image in colour is an error if channels is 1.
    """

    unit = 'images'

    def __init__(
        self, items, seen, channels, classes, img_size, *, crop=None, fit='crop', background='white', keep_colour=True
    ):
        self.items, self.seen, self.channels, self.img_size = items, seen, channels, img_size
        self.height, self.width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.crop = crop if fit == 'crop' and self.height == self.width else None
        self.fit, self.background, self.keep_colour = fit, background, keep_colour
        self.classes = list(classes)
        self.numbers = range(len(self.classes))  # label in `items` -> index in `classes`
        self.nbytes = len(items) * channels * self.height * self.width

    @property
    def num_classes(self):
        """The number of classes; 0 means that the items have no labels."""
        return len(self.classes)

    def arrange(self, names):
        """Number the classes, if there are any, in the order of `names`; classes that are not in `names` come last."""
        if not self.classes:
            return
        order = [*names, *(name for name in self.classes if name not in names)]
        self.numbers = [order.index(self.classes[i]) for i in self.numbers]
        self.classes = order

    def __str__(self):
        """Describe the data set, as in `1,438 images of 8x8, grey, 10 classes: 0 1 2 ... 9`."""
        reason, note = (getattr(self.items, name, '') for name in ('no_classes', 'note'))
        classes = f'no classes, {reason}' if reason else listed(self.classes)
        return f'{_described(len(self), self.seen, self.channels, self.background)}{self._fitting()}, {classes}{note}'

    def _fitting(self):
        """Say what happens to the images before they have the height and width of this set, if anything does."""
        if set(self.seen.sizes) == {(self.width, self.height)}:
            return ''
        changes = self.crop or any(width * self.height != height * self.width for width, height in self.seen.sizes)
        how = f'{FITS[self.fit][0].format(self.background)} and ' if changes else ''
        return f', {how}resized to {sizes_text((self.height, self.width))}'

    def lies_across(self):
        """Return whether all images looked at are wider than high, and H > W, or the other way round."""
        lengths = self.width - self.height
        return all((width - height) * lengths < 0 for width, height in self.seen.sizes)

    def __len__(self):
        return len(self.items)

    def identity(self):
        """Return what identifies these images, fit for JSON, so that a cache made from them can be checked."""
        identity = self.items.identity()
        return {
            **identity,
            'from': fitted(identity['from'], self.fit, self.background),
            'img_size': self.img_size,
            'channels': self.channels,
            'background': self.background,
            'classes': self.classes,
        }

    def _decode(self, image, label):
        image = decode(image, self.channels, self.background, self.keep_colour)
        if self.crop:
            left, top = (image.width - self.crop) // 2, (image.height - self.crop) // 2
            image = image.crop((left, top, left + self.crop, top + self.crop))
        if image.size != (self.width, self.height):
            image = FITS[self.fit][1](image, (self.width, self.height), self.background)
        pixels = np.asarray(image).reshape(self.height, self.width, self.channels)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), self.numbers[label] if self.classes else 0

    def __getitem__(self, i):
        return read_item(self.items, int(i), self._decode)

    def __getitems__(self, indices):
        """Return a batch for DataLoader: (uint8 [B, C, H, W], labels), or a DataError that the caller raises."""
        try:
            read = {i: self[i] for i in sorted(map(int, indices))}  # neighbours may lie in one part of a file
        except DataError as error:
            return error
        images, labels = zip(*(read[int(i)] for i in indices), strict=True)
        return torch.stack(images), torch.tensor(labels) if self.num_classes else None

    def prepare(self, x, flip=None):
        """Map uint8 [B, C, H, W] to float in [-1, 1], and mirror the images for which `flip`, bool [B], is true."""
        x = x.float() / 127.5 - 1
        return x if flip is None else torch.where(flip[:, None, None, None], x.flip(3), x)


class Points:
    """A data set of float32 points [N, channels] and labels. A training loop can use it in place of `Images`."""

    unit = 'points'

    def __init__(self, x, y, classes):
        self.x, self.y = torch.from_numpy(x).float(), torch.from_numpy(y)
        self.channels, self.nbytes = x.shape[1], self.x.nbytes
        self.classes, self.num_classes = list(classes), len(classes)

    def __str__(self):
        """Describe the data set, as in `10,000 points, 2 classes: 0 1`."""
        return f'{len(self):,} points, {listed(self.classes)}'

    def arrange(self, names):
        """Leave the labels unchanged: a named set always numbers its classes in the same way."""

    def __len__(self):
        return len(self.x)

    def __getitems__(self, indices):
        """Return a batch for DataLoader: (float32 [B, channels], labels)."""
        return self.x[indices], self.y[indices] if self.num_classes else None

    def prepare(self, x, flip=None):
        """Return the points unchanged."""
        return x


def shown(names):
    """Return names in one line: all if there are up to five, else the first three and the last."""
    return ' '.join(names if len(names) <= 5 else [*names[:3], '...', names[-1]])


def listed(classes):
    """Return how many classes there are and which, as in `10 classes: 0 1 2 ... 9`."""
    return f'{len(classes)} class{"es"[: 2 * (len(classes) > 1)]}: {shown(classes)}' if classes else 'no classes'


def sizes_text(*sizes):
    """Return a size (height, width), or the first to the last of several, in words: `30x40 to 480x640 (HxW)`."""
    text = ' to '.join(f'{height}x{width}' for height, width in dict.fromkeys(sizes))
    return text + ' (HxW)' * any(height != width for height, width in sizes)


def _described(n, seen, channels, background):
    sizes = sorted({size[::-1] for size in seen.sizes}, key=lambda size: (math.prod(size), size))
    size = sizes_text(sizes[0], sizes[-1])
    part = f' ({len(seen.sizes):,} looked at)' if 1 < len(seen.sizes) < n else ''
    transparency = f', transparency on {background}' if seen.transparent else ''
    return f'{n:,} image{"s"[: n != 1]} of {size}{part}, {"grey" if channels == 1 else "colour"}{transparency}'


def load(name, data_dir, img_size, split='train', channels='auto', background='white', fit='crop'):
    """Return the `Images` or `Points` of a named data set, downloaded to `data_dir` if torchvision can, or of a path.

    name: a key of `DATASETS`, or a path of a kind in `KINDS`. img_size, fit: as in `Images`. split: train or test; a
    path without splits is taken whole. channels: 1 for grey, 3 for colour, or auto: grey if all surveyed images are,
    and then one in colour is an error. background: white or black, behind transparent images and around padded ones.

    Raise DataError if there is no such data set, or if it cannot be downloaded or read.
    """
    auto = channels == 'auto'
    if name in DATASETS:
        source = DATASETS[name]
        if source.points and not auto:
            raise DataError(f'--channels={channels} is for images: {name} is a set of points')
        items = _opened(name, source, data_dir, split)
        if source.points:
            return Points(*items, source.classes)
        sizes = (
            [(source.size, source.size)]
            if source.size
            else [read_item(items, i, lambda image, _: image.size) for i in spread(range(len(items)), 64)]
        )
        channels, classes, crop = source.channels if auto else int(channels), source.classes, source.crop
        seen = Survey(sizes, channels == 1, transparent=False)
    else:
        if not os.path.exists(name):
            names = ', '.join(DATASETS)
            raise DataError(f'{name} is no file or folder that exists, nor one of {names}; from the Hub: hf:OWNER/NAME')
        items = open_files(name, split)
        seen = survey(items, background)
        channels, classes, crop = _channels(channels, seen), items.classes, None
    how = {'crop': crop, 'fit': fit, 'background': background, 'keep_colour': auto}
    return Images(items, seen, channels, classes, img_size, **how)


def _opened(name, source, data_dir, split):
    try:
        return source.open(data_dir, split)
    except ImportError as error:
        raise DataError(f'{name} needs a package: pip install -r requirements-data.txt ({error})') from error
    except Exception as error:  # torchvision, its downloaders and lmdb raise many kinds
        reason = (str(error).strip().splitlines() or [repr(error)])[0].rstrip(':')
        remedy = f'; without a connection, put {source.offline.format(data_dir)}' if source.offline else ''
        raise DataError(f'cannot download or open {name} in {data_dir}: {reason}{remedy}') from error


def _channels(channels, seen):
    return (1 if seen.grey else 3) if channels == 'auto' else int(channels)


def read_images(path, channels='auto', background='white'):
    """Return how many images there are at a path as in `load`, and batches of them, uint8 [n, C, H, W].

    An npz must hold arr_0, uint8 [N, H, W, C], which is read as it is needed; its other arrays are left out.

    Images keep their size, and neighbours of one size make a batch. Log one line that describes them. channels,
    background: as in `load`, for image files only. Raise DataError if the images cannot be read.
    """
    if path.endswith('.npz'):
        (n, *size, c), stream = stream_npz(path)
        logging.info('%s: %s', path, _described(n, Survey([tuple(size[::-1])], c == 1, transparent=False), c, ''))
        return n, stream
    files = open_files(path)
    seen = survey(files, background)
    auto, channels = channels == 'auto', _channels(channels, seen)
    logging.info('%s: %s', path, _described(len(files), seen, channels, background))

    def pixels(image, _):
        return np.atleast_3d(decode(image, channels, background, keep_colour=auto))

    decoded = (read_item(files, i, pixels) for i in range(len(files)))
    runs = groupby(decoded, key=lambda image: image.shape)
    return len(files), (
        torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
        for _, run in runs
        for batch in iter(lambda run=run: list(islice(run, 128)), [])
    )
