"""Random numbers that are functions of a seed and of what they are for, whatever the batch."""

import hashlib

import torch


def derive_seed(*key):
    """A 63-bit seed that is a function of `key` alone, such as ('step', seed, rank, step)."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), 'big') >> 1


BLOCK = 64  # images a generator draws the noise of: one each is too slow on a GPU


class Noise:
    """z ~ N(0, I) [B, *shape] for the images of `indices`, each call the next draw of each image's own sequence.

    Drawn on the device or, if it has no generators of its own, on the CPU.
    """

    def __init__(self, seed, indices, shape, device):
        blocks = sorted({i // BLOCK for i in indices})
        try:
            self.generators = [torch.Generator(device) for _ in blocks]
        except (NotImplementedError, RuntimeError):
            self.generators = [torch.Generator() for _ in blocks]
        for block, generator in zip(blocks, self.generators, strict=True):
            generator.manual_seed(derive_seed('noise', seed, block))
        self.rows = torch.tensor([blocks.index(i // BLOCK) * BLOCK + i % BLOCK for i in indices], device=device)
        self.shape = (BLOCK, *shape)
        self.device = device

    def __call__(self, x=None):
        drawn = [torch.randn(self.shape, generator=each, device=each.device) for each in self.generators]
        return torch.cat(drawn).to(self.device)[self.rows]
