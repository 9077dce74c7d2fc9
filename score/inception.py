"""Prepares the input of the FID Inception and loads its weights. The network is in inception_network.py."""

import torch
import torch.nn.functional as F

from .files import fill, published_weights
from .images import eight_bit, rgb, unit_range

INPUT_SIZE = 299
WEIGHTS_SHA256 = '6726825d'  # the first digits of the digest, as in the name of the file
WEIGHTS_NAME = f'pt_inception-2015-12-05-{WEIGHTS_SHA256}.pth'
WEIGHTS_URL = f'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS_NAME}'


def tensorflow_bilinear(x, size):
    """Computes out[i] = x[l] + (x[l + 1] - x[l]) (s - l), s = i * n / size, l = floor(s): TF1's resize_bilinear.

    Corners are asymmetric (source 0 is target 0), and the last row and column repeat past the edge. Columns go first
    and s is float32, as in TensorFlow's kernel, so the result equals TensorFlow's to the last bit.

    x: float32 [N, C, H, W]. Returns [N, C, size, size].
    """
    for dim in (3, 2):
        n = x.shape[dim]
        source = torch.arange(size, dtype=torch.float32, device=x.device) * (n / size)
        lower = source.long()
        weight = (source - lower).view(-1, *[1] * (3 - dim))
        low = x.index_select(dim, lower)
        high = x.index_select(dim, (lower + 1).clamp(max=n - 1))
        x = low + (high - low) * weight
    return x


def pytorch_input(images):
    """Computes 2 resize(x) - 1, half-pixel bilinear without antialiasing, as pytorch-fid and pytorch-ddpm do.

    images: uint8 or float in [0, 1], [N, 1 or 3, H, W]. Returns float32 [N, 3, 299, 299] in [-1, 1].
    """
    x = rgb(unit_range(images))
    return 2 * F.interpolate(x, size=(INPUT_SIZE, INPUT_SIZE), mode='bilinear', align_corners=False) - 1


def tf_input(images):
    """Computes (resize(x) - 128) / 128, TF1's bilinear on 8-bit images, as the official code and torch-fidelity do.

    images: uint8 [N, 1 or 3, H, W]. Floats in [0, 1] are rounded to 8 bits, because the protocol scores 8-bit images.
    Returns float32 [N, 3, 299, 299] in [-1, 1).
    """
    return (tensorflow_bilinear(rgb(eight_bit(images)).float(), INPUT_SIZE) - 128) / 128


PROTOCOLS = {'pytorch': pytorch_input, 'tf': tf_input}


def load_inception(path=None, sha256=WEIGHTS_SHA256):
    """Loads the FID Inception, in eval mode on the CPU; returns it and the SHA-256 of its weights' file.

    path: a file of the standard weights, by default torch's hub cache, into which it is downloaded once. sha256: the
    first digits that the digest of the file must have; '' admits any weights of the same layout.

    Raises ScoreError if the file is missing, damaged or a different one.
    """
    file, state, digest = published_weights('Inception', WEIGHTS_URL, WEIGHTS_NAME, sha256, path)
    from .inception_network import FIDInception  # imported here because torchvision takes a second

    with torch.device('meta'):  # these weights are replaced: spend no memory, time or draw from the generator
        network = FIDInception()
    fill(network, state, file, f"the FID Inception's state dict; get {WEIGHTS_URL}")
    return network.float().eval().requires_grad_(False), digest
