"""Data sets of images and points: the named ones, folders and zips, and their batches (loader.py)."""

from dataset.files import DataError, ImageFiles
from dataset.images import Images, Points, listed, load, read_images, shown
from dataset.named import DATASETS

__all__ = ['DATASETS', 'DataError', 'ImageFiles', 'Images', 'Points', 'listed', 'load', 'read_images', 'shown']
