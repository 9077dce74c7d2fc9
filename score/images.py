"""Says what a batch of images is: [N, C, H, W], C 1 or 3, uint8 in [0, 255] or float in [0, 1]."""

from itertools import islice

import torch
from tqdm import tqdm

from .files import Unscorable


def check_images(images):
    """Returns the batch as a uint8 or float32 tensor.

    images: tensor or array [N, C, H, W], C 1 or 3, uint8 in [0, 255] or float in [0, 1].

    Raises Unscorable for another shape or type, no images, NaN, or values out of range.
    """
    images = torch.as_tensor(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise Unscorable(f'images must be [N, C, H, W] with 1 or 3 channels, got shape {tuple(images.shape)}')
    if images.numel() == 0:
        raise Unscorable(f'there are no images in a batch of shape {tuple(images.shape)}')
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise Unscorable(f'images must be uint8 in [0, 255] or float in [0, 1], got {images.dtype}')
    low, high = (value.item() for value in images.aminmax())
    if low != low:
        raise Unscorable('images contain NaN; look at what drew them before scoring them')
    if low < 0 or high > 1:
        raise Unscorable(f'float images must lie in [0, 1], got [{low:g}, {high:g}]; rescale them or pass uint8')
    return images.float()


def unit_range(images):
    """Computes x / 255: uint8 to float32 in [0, 1], as torchvision's `to_tensor`. Float images stay as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def eight_bit(images):
    """Computes floor(255 x + 1/2): float in [0, 1] to uint8, as torchvision's `save_image`. uint8 stays as it is."""
    return images if images.dtype == torch.uint8 else (images * 255 + 0.5).to(torch.uint8)


def rgb(images):
    """Repeats grey images over three channels, [N, 3, H, W]. They are contiguous: the layout decides how sums round."""
    return images.expand(-1, 3, -1, -1).contiguous()


def batches(images, num_images, batch_size, verbose, desc):
    """Stacks the first num_images of an array or iterable of [C, H, W] into tensors [n <= batch_size, C, H, W].

    verbose: whether to show a bar, with `desc` before it.
    """
    images = islice(images, num_images)
    if verbose:
        images = tqdm(images, desc, num_images, unit='image', leave=False, dynamic_ncols=True)
    images = iter(images)
    while batch := list(islice(images, batch_size)):
        yield torch.stack([torch.as_tensor(image) for image in batch])
