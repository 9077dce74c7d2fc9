"""Linear degradations A of images, and the projection that keeps what is known of one: x_0 with A x_0 = y.

DDNM (Wang et al. 2023, https://arxiv.org/abs/2212.00490) samples an image of which only y = A x_0 is known, with a
diffusion that was not trained for it. It replaces each predicted x0_hat by x0_hat - A^+ (A x0_hat - y).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

LUMA = 0.299, 0.587, 0.114  # of red, green and blue in a grey image (ITU-R BT.601), as Pillow converts to grey


class Operator(NamedTuple):
    """A linear map `forward`, x -> A x, and its pseudo-inverse `inverse`, y -> A^+ y. x: [B, C, H, W]."""

    forward: Callable
    inverse: Callable

    def projection(self, y):
        """Return x -> A^+ y + (x - A^+ A x) (DDNM eq. 13), for `project` of `GaussianDiffusionSampler.trajectory`.

        In this order of terms, pixels that A leaves as they are come out as in y to the last bit.
        """
        known = self.inverse(y)
        return lambda x: known + (x - self.inverse(self.forward(x)))


def inpaint(known):
    """A x = m x, and A^+ y = m y. known: m, a mask [B or 1, 1, H, W] that is true where a pixel is known."""

    def keep(x):
        return x * known.to(x)

    return Operator(keep, keep)


def upscale(factor):
    """A x is the mean of each square of factor^2 pixels, and A^+ y repeats a pixel over its square.

    `forward` raises ValueError if the factor does not divide the height and the width.
    """

    def shrink(x):
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(f'a factor of {factor} does not divide images of {x.shape[2]}x{x.shape[3]}')
        return F.avg_pool2d(x, factor)

    return Operator(shrink, lambda y: y.repeat_interleave(factor, 2).repeat_interleave(factor, 3))


def colorize():
    """A x = w . x is the grey image of a colour image, [B, 1, H, W], w = `LUMA`; A^+ y = w y / |w|^2.

    `forward` raises ValueError if x has not 3 channels.
    """
    w = torch.tensor(LUMA)[:, None, None]

    def grey(x):
        if x.shape[1] != 3:
            raise ValueError(f'colour has 3 channels, and these images have {x.shape[1]}')
        return (x * w.to(x)).sum(1, keepdim=True)

    return Operator(grey, lambda y: y * (w / w.square().sum()).to(y))


class Degradation(NamedTuple):
    """make: function of (known, factor), a mask and an int, that returns an `Operator`. takes_mask: if it has a mask.

    --edit offers the keys of `OPERATORS`.
    """

    make: Callable
    takes_mask: bool = False


OPERATORS = {
    'inpaint': Degradation(lambda known, factor: inpaint(known), takes_mask=True),
    'upscale': Degradation(lambda known, factor: upscale(factor)),
    'colorize': Degradation(lambda known, factor: colorize()),
}
