"""Define the U-Net of the paper, out = model(x, t, y) (Ho et al. 2020, appendix B).

`UNet` has the state-dict keys and shapes of w86763777/pytorch-ddpm. The authors' own network is the same graph with
four choices made differently, and `ARCHS` holds those choices. The authors' network is that of hojonathanho/diffusion,
of its PyTorch port pesser/pytorch_diffusion, and of google/ddpm-cifar10-32 in diffusers.

The smaller networks are in the folder `networks/`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn import init


def _interleaved(t, ch):
    frequencies = torch.exp(-torch.arange(0, ch, 2) / ch * math.log(10000))
    angles = t[:, None] * frequencies  # [B, ch / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def sinusoidal(t, dim):
    """Return [sin(w_i t)..., cos(w_i t)...] with w_i = 10000^(-i / (dim / 2 - 1)): t float [B] -> [B, dim]."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / (half - 1)))
    angles = t[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Arch(NamedTuple):
    """Holds the four choices in which pytorch-ddpm's network and the authors' differ.

    embed: the function (t, ch) -> [B, ch] that gives the sinusoidal embeddings of timesteps [B]. norm_eps: the epsilon
    of every GroupNorm. pad_all_sides: whether a convolution of stride 2 pads all four sides; if not, it pads
    the right and the bottom, as TensorFlow's SAME does. attn_gain: the gain of the initial weights of the last
    projection in each attention block.
    """

    embed: Callable
    norm_eps: float
    pad_all_sides: bool
    attn_gain: float


ARCHS = {
    'pytorch_ddpm': Arch(_interleaved, 1e-5, True, 1.0),
    'official': Arch(sinusoidal, 1e-6, False, 1e-5),
}


class TimeEmbedding(nn.Module):
    """Looks t up in a frozen sinusoidal table and applies two dense layers: t int64 [B] -> [B, dim]."""

    def __init__(self, table, dim):
        super().__init__()
        self.timembedding = nn.Sequential(
            nn.Embedding.from_pretrained(table),
            nn.Linear(table.shape[1], dim),
            nn.SiLU(),
            nn.Linear(dim, dim),
        )

    def forward(self, t):
        return self.timembedding(t)


def is_compiled_for_gpu(x):
    """Return whether torch.compile traces this call, and x is on a GPU."""
    return x.is_cuda and torch.compiler.is_compiling()


class GroupNorm(nn.GroupNorm):
    """GroupNorm that keeps the layout of its input if it is compiled for a GPU: x [B, C, H, W] -> the shape of x."""

    def forward(self, x):
        if is_compiled_for_gpu(x):
            return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return super().forward(x)


def group_norm(x, groups, weight, bias, eps):
    """Compute F.group_norm from the moments of each channel, in operations that keep channels last as they are.

    CUDA's own kernel returns its output and its gradient channels first, and each convolution copies them back.
    """
    h = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(h, dim=(2, 3), correction=0)  # [B, C]
    variance, mean = variance.unflatten(1, (groups, -1)), mean.unflatten(1, (groups, -1))  # [B, groups, C / groups]
    of_group = mean.mean(2, keepdim=True)
    rstd = ((variance + (mean - of_group) ** 2).mean(2, keepdim=True) + eps).rsqrt()
    scale = rstd * weight.unflatten(0, (groups, -1))
    shift = bias.unflatten(0, (groups, -1)) - of_group * scale
    return (h * scale.flatten(1)[:, :, None, None] + shift.flatten(1)[:, :, None, None]).to(weight.dtype)


class DownSample(nn.Module):
    """Halves height and width with a 3x3 convolution of stride 2."""

    def __init__(self, ch, pad_all_sides):
        super().__init__()
        self.pad_all_sides = pad_all_sides
        self.main = nn.Conv2d(ch, ch, 3, stride=2, padding=1 if pad_all_sides else 0)

    def forward(self, x, temb):
        return self.main(x if self.pad_all_sides else F.pad(x, (0, 1, 0, 1)))


class UpSample(nn.Module):
    """Doubles height and width with nearest-neighbour interpolation and a 3x3 convolution."""

    def __init__(self, ch):
        super().__init__()
        self.main = nn.Conv2d(ch, ch, 3, padding=1)

    def forward(self, x, temb):
        return self.main(upsample(x) if is_compiled_for_gpu(x) else F.interpolate(x, scale_factor=2, mode='nearest'))


def upsample(x):
    """Double height and width as F.interpolate does, so that the gradient is a sum of four: no atomic additions."""
    n, c, h, w = x.shape
    x = x.permute(0, 2, 3, 1)[:, :, None, :, None]  # [B, H, 1, W, 1, C]
    return x.expand(n, h, 2, w, 2, c).reshape(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


class Concatenate(torch.autograd.Function):
    """torch.cat([a, b], dim=1) with dense gradients, as each convolution before it would copy a slice twice."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.channels = a.shape[1]
        return torch.cat([a, b], dim=1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient[:, : ctx.channels].clone(), gradient[:, ctx.channels :].clone()


class AttnBlock(nn.Module):
    """Adds self-attention over all positions to x: softmax(q k^T / sqrt(head_dim)) v, then a projection.

    head_dim: the number of channels of each head. A head takes consecutive channels, as in diffusers; 0 makes one head
    of all channels.

    Raise ValueError if head_dim does not divide ch.
    """

    def __init__(self, ch, norm_eps, head_dim=0):
        super().__init__()
        self.head_dim = head_dim or ch
        refuse((ch % self.head_dim, f'head_dim must divide the {ch} channels of attention at a level, not {head_dim}'))
        self.group_norm = GroupNorm(32, ch, eps=norm_eps)
        self.proj_q = nn.Conv2d(ch, ch, 1)
        self.proj_k = nn.Conv2d(ch, ch, 1)
        self.proj_v = nn.Conv2d(ch, ch, 1)
        self.proj = nn.Conv2d(ch, ch, 1)

    def forward(self, x):
        h = self.group_norm(x)
        q, k, v = (
            proj(h).flatten(2).unflatten(1, (-1, self.head_dim)).transpose(2, 3)  # [B, heads, H * W, head_dim]
            for proj in (self.proj_q, self.proj_k, self.proj_v)
        )
        h = F.scaled_dot_product_attention(q, k, v)
        h = h.transpose(2, 3).reshape(x.shape)
        return x + self.proj(h)


class ResBlock(nn.Module):
    """Adds two normalised 3x3 convolutions to x, the time embedding between them, and ends with attention if `attn`."""

    def __init__(self, in_ch, out_ch, tdim, dropout, attn, norm_eps, head_dim=0):
        super().__init__()
        self.block1 = nn.Sequential(
            GroupNorm(32, in_ch, eps=norm_eps),
            nn.SiLU(),
            nn.Conv2d(in_ch, out_ch, 3, padding=1),
        )
        self.temb_proj = nn.Sequential(nn.SiLU(), nn.Linear(tdim, out_ch))
        self.block2 = nn.Sequential(
            GroupNorm(32, out_ch, eps=norm_eps),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(out_ch, out_ch, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(in_ch, out_ch, 1) if in_ch != out_ch else nn.Identity()
        self.attn = AttnBlock(out_ch, norm_eps, head_dim) if attn else nn.Identity()

    def forward(self, x, temb):
        h = self.block1(x)
        h = h + self.temb_proj(temb)[:, :, None, None]
        h = self.block2(h)
        return self.attn(h + self.shortcut(x))


class UNet(nn.Module):
    """eps_theta(x_t, t) (Ho et al. 2020, appendix B): x [B, C, H, W], t int64 [B] in 0..T-1 -> out, the shape of x.

    T: the number of timesteps.
    ch: the number of channels of the first level, a multiple of 32 because GroupNorm has 32 groups. In a block of 32
        channels each group is one channel, and the norm removes the time embedding again: make some level wider.
    ch_mult: one factor per level; the level has this factor times ch channels. Every level but the last ends with a
        halving of the image.
    attn: the levels with attention, counted from 0. The middle always has attention.
    num_res_blocks: the number of residual blocks per level on the way down; the way up has one more per level.
    dropout: the dropout rate in every residual block.
    arch: a key of `ARCHS`.
    img_channels: C, 1 or 3. out_channels: the channels of out, by default C; a learned variance needs 2 C.
    img_size: the height and width of the images, an int if they are equal, else a pair (H, W). If it is given, it is
        checked.
    num_classes: the number of classes if the network takes labels y int64 [B]. The embedding of a label is added to
        that of the time. y = num_classes, or y = None, means no label.
    head_dim: the number of channels of each attention head; 0 makes one head of all channels. It must divide the
        channels of every level with attention, and those of the last level, which the middle has.

    Raise ValueError if the arguments do not fit together.
    """

    def __init__(
        self,
        T,
        ch,
        ch_mult,
        attn,
        num_res_blocks,
        dropout,
        *,
        arch='pytorch_ddpm',
        img_channels=3,
        out_channels=None,
        img_size=None,
        num_classes=None,
        head_dim=0,
    ):
        super().__init__()
        refuse((arch not in ARCHS, f'arch must be one of {", ".join(ARCHS)}, not {arch}'))
        check_levels(ch, ch_mult, img_channels, img_size)
        _check_blocks(ch_mult, attn, num_res_blocks, dropout)
        embed, norm_eps, pad_all_sides, attn_gain = ARCHS[arch]

        tdim = ch * 4
        self.time_embedding = TimeEmbedding(embed(torch.arange(T).float(), ch), tdim)
        self.head = nn.Conv2d(img_channels, ch, 3, padding=1)

        self.downblocks = nn.ModuleList()
        skips = [ch]  # the channels of each output that the way up concatenates
        now_ch = ch
        for level, mult in enumerate(ch_mult):
            for _ in range(num_res_blocks):
                self.downblocks.append(ResBlock(now_ch, ch * mult, tdim, dropout, level in attn, norm_eps, head_dim))
                now_ch = ch * mult
                skips.append(now_ch)
            if level < len(ch_mult) - 1:
                self.downblocks.append(DownSample(now_ch, pad_all_sides))
                skips.append(now_ch)

        self.middleblocks = nn.ModuleList(
            [ResBlock(now_ch, now_ch, tdim, dropout, attn, norm_eps, head_dim) for attn in (True, False)]
        )

        self.upblocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(ch_mult))):
            for _ in range(num_res_blocks + 1):
                in_ch, now_ch = skips.pop() + now_ch, ch * mult
                self.upblocks.append(ResBlock(in_ch, now_ch, tdim, dropout, level in attn, norm_eps, head_dim))
            if level > 0:
                self.upblocks.append(UpSample(now_ch))

        self.tail = nn.Sequential(
            GroupNorm(32, now_ch, eps=norm_eps),
            nn.SiLU(),
            nn.Conv2d(now_ch, out_channels or img_channels, 3, padding=1),
        )
        self.num_classes = num_classes
        if num_classes:
            self.label_embedding = nn.Embedding(num_classes + 1, tdim)  # the last row stands for no label
        self.initialize(attn_gain)

    def initialize(self, attn_gain):
        """Draw Xavier-uniform weights and set the biases to zero.

        The convolutions that end a residual branch, and that of the tail, get weights near zero.
        """
        gains = {self.tail[-1]: 1e-5}
        for module in self.modules():
            if isinstance(module, ResBlock):
                gains[module.block2[-1]] = 1e-5
            elif isinstance(module, AttnBlock):
                gains[module.proj] = attn_gain
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                init.xavier_uniform_(module.weight, gain=gains.get(module, 1.0))
                init.zeros_(module.bias)
        if self.num_classes:
            init.normal_(self.label_embedding.weight, std=0.02)

    def forward(self, x, t, y=None):
        temb = self.time_embedding(t)  # [B, 4 ch]
        if (y := labels_or_none(self, t, y)) is not None:
            temb = temb + self.label_embedding(y)
        h = self.head(x)  # [B, ch, H, W]
        hs = [h]
        for layer in self.downblocks:
            h = layer(h, temb)
            hs.append(h)
        for layer in self.middleblocks:  # [B, ch * ch_mult[-1], H / 2^(levels-1), W / 2^(levels-1)]
            h = layer(h, temb)
        for layer in self.upblocks:
            if isinstance(layer, ResBlock):
                h = Concatenate.apply(h, hs.pop())
            h = layer(h, temb)
        return self.tail(h)  # [B, out_channels, H, W]


def labels_or_none(net, t, y):
    """Return the labels that a network embeds, int64 [B], or None if it takes none. y = None means no label.

    Raise ValueError if y is given to a network without num_classes.
    """
    if net.num_classes:
        return torch.full_like(t, net.num_classes) if y is None else y
    if y is not None:
        raise ValueError('this network was built without num_classes and takes no labels')
    return None


def refuse(*checks):
    """Raise ValueError with the first complaint whose condition holds. checks: pairs (condition, complaint)."""
    for broken, complaint in checks:
        if broken:
            raise ValueError(complaint)


def sides(img_size):
    """Return (H, W) of an image size, which is an int if they are equal, else a pair."""
    return (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)


def check_levels(ch, ch_mult, img_channels, img_size):
    """Raise ValueError unless a U-Net can have these levels. img_size: as in `UNet`, or None if it is not known."""
    factor, lengths = 2 ** (len(ch_mult) - 1), () if img_size is None else sides(img_size)
    refuse(
        (img_size is not None and len(lengths) != 2, f'img_size must be a number or a pair (H, W), not {img_size}'),
        (ch < 32 or ch % 32, f'ch must be a multiple of 32, the groups of GroupNorm, not {ch}'),
        (not ch_mult or min(ch_mult, default=0) < 1, f'ch_mult must be one or more positive integers, not {ch_mult}'),
        (img_channels not in (1, 3), f'images must have 1 or 3 channels, not {img_channels}'),
        (
            any(length < 1 or length % factor for length in lengths),
            f'img_size must be divisible by {factor}, as {len(ch_mult)} levels halve it {len(ch_mult) - 1} times, '
            f'not {"x".join(map(str, dict.fromkeys(lengths)))}',
        ),
    )


def _check_blocks(ch_mult, attn, num_res_blocks, dropout):
    refuse(
        (not set(attn) <= set(range(len(ch_mult))), f'attn must name levels 0 to {len(ch_mult) - 1}, not {attn}'),
        (num_res_blocks < 1, f'num_res_blocks must be at least 1, not {num_res_blocks}'),
        (not 0 <= dropout < 1, f'dropout must be in [0, 1), not {dropout}'),
    )
