"""Load data sets of images and points: named ones, and files of many kinds. loader.py makes batches of them."""

# ruff: noqa: F401 (what is imported here is what this package offers)

from dataset.arrays import npz_identity
from dataset.files import DataError
from dataset.images import FITS, Images, Points, fitted, listed, load, read_images, shown, sizes_text
from dataset.kinds import open_files, splits
from dataset.named import DATASETS
from dataset.splits import check_one_set
