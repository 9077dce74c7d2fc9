"""Load data sets of images and points: named ones, folders and zips. loader.py makes batches of them."""

# ruff: noqa: F401 (what is imported here is what this package offers)

from dataset.files import DataError, ImageFiles
from dataset.images import FITS, Images, Points, fitted, listed, load, npz_identity, read_images, shown, sizes_text
from dataset.named import DATASETS
