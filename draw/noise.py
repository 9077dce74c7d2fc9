"""Draw random numbers that depend only on a seed and on what they are for, not on the batch."""

import hashlib
import math

import numpy as np
import torch

from process.schedules import known
from run import build, hardware
from run.errors import usage


def derive_seed(*key):
    """Return a 63-bit seed that depends only on `key`, such as ('noise', seed, block)."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), 'big') >> 1


HAS_GENERATORS = 'cpu', 'cuda', 'mps', 'xpu'  # kinds of device on which torch draws random numbers
BLOCK = 64  # images that share a generator: one generator per image is too slow on a GPU


class Noise:
    """z ~ N(0, I) [B, *shape] for the images of `indices`: each call gives the next draw of each image's own sequence.

    The noise is drawn on the device or, if its kind is not in `HAS_GENERATORS`, on the CPU.
    """

    def __init__(self, seed, indices, shape, device):
        blocks = sorted({i // BLOCK for i in indices})
        source = device if device.type in HAS_GENERATORS else 'cpu'
        self.generators = [torch.Generator(source) for _ in blocks]
        for block, generator in zip(blocks, self.generators, strict=True):
            generator.manual_seed(derive_seed('noise', seed, block))
        self.rows = torch.tensor([blocks.index(i // BLOCK) * BLOCK + i % BLOCK for i in indices], device=device)
        self.shape = (BLOCK, *shape)
        self.device = device

    def __call__(self, x=None):
        drawn = [torch.randn(self.shape, generator=each, device=each.device) for each in self.generators]
        return torch.cat(drawn).to(self.device)[self.rows]


class Philox:
    """z ~ N(0, I) [B, *shape] as `Noise`, by arithmetic that is the same on every device and in a browser.

    The sequence of an image is that of Philox-4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
    3") with the key (seed, index) and a counter that begins at 1, as numpy's. Two of its 64-bit words w make a number:
    z = sqrt(-2 ln u_1) cos(2 pi u_2) (Box and Muller 1958) with u = ((w >> 11) + 1) / 2^53, in (0, 1]. It is computed
    in float64, on the CPU because not every device has that. docs/try/sampler.js does the same.
    """

    def __init__(self, seed, indices, shape, device):
        self.words = [np.random.Philox(key=np.array([seed, i], dtype=np.uint64)).random_raw for i in indices]
        self.shape, self.device = shape, device

    def __call__(self, x=None):
        words = np.stack([draw(2 * math.prod(self.shape)) for draw in self.words])
        u = ((words >> np.uint64(11)).astype(np.float64) + 1) / 2**53
        z = np.sqrt(-2 * np.log(u[:, ::2])) * np.cos(2 * np.pi * u[:, 1::2])
        return torch.from_numpy(z.astype(np.float32)).view(-1, *self.shape).to(self.device)


# --noise -> the class of the noise that images are drawn from.
NOISES = {'torch': Noise, 'philox': Philox}


def of_images(config, indices):
    """Return the noise that --sample draws these images from. Raise UsageError if --noise is none of ours."""
    with usage():
        make = NOISES[known('noise', config.noise, NOISES)]
    return make(config.seed, indices, build.shape(config), hardware.device(config))
