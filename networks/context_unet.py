"""Define `ContextUNet`, the small U-Net of NVIDIA's course "Generative AI with Diffusion Models", and its blocks."""

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from model import check_levels, labels_or_none, sides, sinusoidal


class GELUConvBlock(nn.Sequential):
    """Applies a 3x3 convolution, GroupNorm and GELU: [B, in_ch, H, W] -> [B, out_ch, H, W]."""

    def __init__(self, in_ch, out_ch, groups):
        super().__init__(nn.Conv2d(in_ch, out_ch, 3, padding=1), nn.GroupNorm(groups, out_ch), nn.GELU())


class ResidualConvBlock(nn.Module):
    """Gives f(x) + g(f(x)), with GELU convolution blocks f and g: [B, in_ch, H, W] -> [B, out_ch, H, W]."""

    def __init__(self, in_ch, out_ch, groups):
        super().__init__()
        self.conv1 = GELUConvBlock(in_ch, out_ch, groups)
        self.conv2 = GELUConvBlock(out_ch, out_ch, groups)

    def forward(self, x):
        h = self.conv1(x)
        return h + self.conv2(h)


class RearrangePoolBlock(nn.Sequential):
    """Turns each 2x2 square into four channels and applies a convolution block: [B, ch, H, W] -> [B, ch, H / 2, W / 2].

    Unlike pooling, this loses nothing.
    """

    def __init__(self, ch, groups):
        super().__init__(nn.PixelUnshuffle(2), GELUConvBlock(4 * ch, ch, groups))


class DownBlock(nn.Sequential):
    """Applies two GELU convolution blocks and a rearranging pool: [B, in_ch, H, W] -> [B, out_ch, H / 2, W / 2]."""

    def __init__(self, in_ch, out_ch, groups):
        super().__init__(
            GELUConvBlock(in_ch, out_ch, groups),
            GELUConvBlock(out_ch, out_ch, groups),
            RearrangePoolBlock(out_ch, groups),
        )


class UpBlock(nn.Module):
    """Joins x and its skip [B, in_ch, H, W], doubles their size and applies four blocks -> [B, out_ch, 2 H, 2 W]."""

    def __init__(self, in_ch, out_ch, groups):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(2 * in_ch, out_ch, 2, stride=2),
            *(GELUConvBlock(out_ch, out_ch, groups) for _ in range(4)),
        )

    def forward(self, x, skip):
        return self.main(torch.cat([x, skip], dim=1))


class EmbedBlock(nn.Sequential):
    """Applies two dense layers, [B, dim] -> [B, ch, 1, 1], whose output scales or shifts a map of ch channels."""

    def __init__(self, dim, ch):
        super().__init__(nn.Linear(dim, ch), nn.GELU(), nn.Linear(ch, ch), nn.Unflatten(1, (ch, 1, 1)))


class ContextUNet(nn.Module):
    """eps_theta(x_t, t, y): a small U-Net that trains quickly. On the way up it computes c_emb * up + t_emb.

    x [B, C, H, W], t int64 [B] in 0..T-1, y int64 [B] or None -> out, the shape of x. The lowest map passes through a
    flat dense embedding. On the way up the label scales each map and the time shifts it. A label is one-hot; no label
    (y = num_classes, or y = None) is all zeros.

    ch, ch_mult: level i has ch * ch_mult[i] channels, and ch is a multiple of 32. Every level but the first begins
        with a halving of the image. The course's (64, 64, 128) is ch 64 and ch_mult [1, 1, 2].
    img_size, img_channels, out_channels, num_classes: the same as those of `UNet`.
    tdim: the width of the sinusoidal embedding of t / T.

    Raise ValueError if the arguments do not fit together.
    """

    def __init__(self, T, ch, ch_mult, *, img_channels=1, out_channels=None, img_size=28, num_classes=None, tdim=8):
        super().__init__()
        check_levels(ch, ch_mult, img_channels, img_size)
        self.T, self.tdim, self.num_classes = T, tdim, num_classes
        levels = [ch * mult for mult in ch_mult]
        lowest = (levels[-1], *(side // 2 ** (len(levels) - 1) for side in sides(img_size)))
        steps = list(pairwise(levels))

        self.head = ResidualConvBlock(img_channels, levels[0], groups=ch // 8)
        self.downs = nn.ModuleList(DownBlock(a, b, groups=ch // 2) for a, b in steps)
        self.latent = nn.Sequential(
            nn.Flatten(),
            nn.GELU(),
            nn.Linear(math.prod(lowest), ch),
            nn.ReLU(),
            nn.Linear(ch, ch),
            nn.ReLU(),
            nn.Linear(ch, math.prod(lowest)),
            nn.ReLU(),
            nn.Unflatten(1, lowest),
            GELUConvBlock(levels[-1], levels[-1], groups=ch // 2),
        )
        self.time_embeds = nn.ModuleList(EmbedBlock(tdim, b) for _, b in reversed(steps))
        if num_classes:
            self.label_embeds = nn.ModuleList(EmbedBlock(num_classes, b) for _, b in reversed(steps))
        self.ups = nn.ModuleList(UpBlock(b, a, groups=ch // 2) for a, b in reversed(steps))
        self.tail = nn.Sequential(
            nn.Conv2d(2 * levels[0], levels[0], 3, padding=1),
            nn.GroupNorm(ch // 8, levels[0]),
            nn.ReLU(),
            nn.Conv2d(levels[0], out_channels or img_channels, 3, padding=1),
        )

    def forward(self, x, t, y=None):
        y = labels_or_none(self, t, y)
        hs = [self.head(x)]  # [B, ch, H, W]
        for down in self.downs:
            hs.append(down(hs[-1]))
        up = self.latent(hs[-1])  # [B, ch * ch_mult[-1], H / 2^(levels-1), W / 2^(levels-1)]
        temb = sinusoidal(t / self.T, self.tdim).to(x.dtype)  # [B, tdim]
        if y is not None:
            c = F.one_hot(y, self.num_classes + 1)[:, :-1].to(x.dtype)  # [B, num_classes], zeros for no label
        for i, layer in enumerate(self.ups):
            if y is not None:
                up = self.label_embeds[i](c) * up
            up = layer(up + self.time_embeds[i](temb), hs.pop())
        return self.tail(torch.cat([up, hs.pop()], dim=1))  # [B, out_channels, H, W]
