"""Draw random numbers that depend only on a seed and on what they are for, not on the batch."""

import hashlib

import torch


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
