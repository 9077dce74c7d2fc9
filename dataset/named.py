"""Register the named data sets, one entry each: how to open it, and what is known about it beforehand."""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataset.files import LMDB


class Source(NamedTuple):
    open: Callable  # (data_dir, 'train' or 'test') -> indexable items (PIL image, label), or arrays (x [N, 2], y [N])
    channels: int  # channels of an image, or coordinates of a point
    classes: tuple = ()  # the names of the labels
    offline: str = ''  # which files to put where if the download fails; {} is data_dir
    size: int | None = None  # height and width of every image, if all are the same
    crop: int | None = None  # side of the centre crop that makes images square; None for the largest square
    points: bool = False
    database: Callable = None  # (data_dir, split) -> path of a file that the user brings; None if downloaded


def _torchvision(name, *properties):
    def download(root, split):
        from torchvision import datasets  # here, since torchvision takes a second to import

        return getattr(datasets, name)(root, train=split == 'train', download=True)

    return Source(download, *properties)


def _mnist(name, address, classes):
    files = ', '.join(
        f'{split}-{part}-ubyte.gz' for split in ('train', 't10k') for part in ('images-idx3', 'labels-idx1')
    )
    # torchvision would open an unpacked file there before these, even one that a kill cut off.
    return _torchvision(name, 1, classes, f'{files} of {address}, and nothing else, into {{}}/{name}/raw', 28)


def _celeba(root, split):
    from torchvision.datasets import CelebA

    return CelebA(root, split, download=True)


def _lsun(train, test, address):
    def folder(root, split):
        return os.path.join(root, 'lsun', test if split == 'test' else train)

    folders = ' and '.join(dict.fromkeys((train, test)))
    return Source(
        lambda root, split: LMDB(folder(root, split)),
        3,
        offline=f'{folders}, unpacked from the zips of {address}, into {{}}/lsun',
        database=lambda root, split: os.path.join(folder(root, split), 'data.mdb'),
    )


def _digits(root, split):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    test = np.arange(len(images)) % 5 == 4  # the set has no split of its own
    kept = test if split == 'test' else ~test
    return [(Image.fromarray(image), int(label)) for image, label in zip(images[kept], labels[kept], strict=True)]


def _points(name, classes=(), columns=(0, 1), centre=(0, 0), scale=10, **kwargs):
    """Return a `Source` of 10,000 points of sklearn's make_<name>, near the origin; the test split is a new draw."""

    def draw(root, split):
        from sklearn import datasets

        x, y = getattr(datasets, f'make_{name}')(10**4, random_state=int(split == 'test'), **kwargs)
        return (x[:, columns] - np.array(centre)) / scale, y

    return Source(draw, 2, classes, points=True)


DIGITS = tuple('0123456789')

CIFAR10 = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')

CLOTHES = 'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot'

CIFAR10_FILE = 'cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/ into {}'

CELEBA_FILES = (
    'img_align_celeba.zip, list_attr_celeba.txt, identity_CelebA.txt, list_bbox_celeba.txt, '
    'list_landmarks_align_celeba.txt and list_eval_partition.txt of '
    'https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html into {}/celeba'
)

SCENES, OBJECTS = 'http://dl.yf.io/lsun/scenes/', 'http://dl.yf.io/lsun/objects/'

DATASETS = {
    'cifar10': _torchvision('CIFAR10', 3, CIFAR10, CIFAR10_FILE, 32),
    'mnist': _mnist('MNIST', 'https://ossci-datasets.s3.amazonaws.com/mnist/', DIGITS),
    'fashion_mnist': _mnist('FashionMNIST', 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/', CLOTHES),
    'celeba': Source(_celeba, 3, (), CELEBA_FILES, crop=140),
    'lsun_bedroom': _lsun('bedroom_train_lmdb', 'bedroom_val_lmdb', SCENES),
    'lsun_church_outdoor': _lsun('church_outdoor_train_lmdb', 'church_outdoor_val_lmdb', SCENES),
    'lsun_cat': _lsun('cat', 'cat', OBJECTS),  # an object category: it comes without a split
    'digits': Source(_digits, 1, DIGITS, size=8),
    's_curve': _points('s_curve', columns=(0, 2), noise=0.1),
    'moons': _points('moons', ('0', '1'), centre=(0.5, 0.25), noise=0.05),
    'circles': _points('circles', ('0', '1'), noise=0.05, factor=0.5),
    'swiss_roll': _points('swiss_roll', columns=(0, 2), scale=100, noise=0.5),
}
