"""Prepare a network for sampling: freeze it, set its precision, and tabulate what depends only on t."""

import copy
from itertools import accumulate

import torch
from torch import nn

from model import ResBlock, UNet
from run import build


class Inference(nn.Module):
    """model(x, t, y) -> out in float32: a frozen copy of `net` whose weights have type `dtype`.

    t: int64 [B]. If it is one value expanded, as along a trajectory, the part that depends only on t is computed once,
    not B times. After `compile`, each new batch size is compiled when it first comes. guide: the `Inference` of the
    guide if net is `Guided`, else None.
    """

    def __init__(self, net, dtype):
        super().__init__()
        net, guide = (net.net, net.guide) if isinstance(net, build.Guided) else (net, None)
        self.guide = guide and Inference(guide, dtype)
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        if isinstance(net, UNet):
            _tabulate_time(self.net)
        self.net.to(dtype=dtype)
        self.dtype, self.layout = dtype, torch.contiguous_format
        self.call, self.compiled = self.net, False

    def compile(self, **options):
        """Compile the networks, which takes a minute or more at the next call. options: passed to inductor."""
        self.layout = torch.channels_last  # for compiled code alone, as the eager GroupNorm is slower with it
        self.net.to(memory_format=self.layout)
        self.call = torch.compile(self.net, dynamic=False, options=options)
        self.compiled = True
        if self.guide:
            self.guide.compile(**options)

    def forward(self, x, t, y=None):
        x = x.to(self.dtype, memory_format=self.layout if x.ndim == 4 else torch.contiguous_format)
        t = t[:1] if t.stride() == (0,) else t
        with torch.no_grad():  # a copy, because the next call may write to the same memory
            return self.call(x, t, y).to(torch.float32, copy=True, memory_format=torch.contiguous_format)


class _Columns(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.columns = columns

    def forward(self, table):
        return table[:, self.columns]


@torch.no_grad()
def _tabulate_time(net):
    """Compute a UNet's embedding of every t now and, if no label is added to it, each block's projection of it.

    The projections stay as they are if their table would be larger than the network.
    """
    table = net.time_embedding.timembedding[0]
    embedded = net.time_embedding(torch.arange(table.num_embeddings, device=table.weight.device))  # [T, 4 ch]
    blocks = [module for module in net.modules() if isinstance(module, ResBlock)]
    widths = [block.temb_proj[-1].out_features for block in blocks]
    if not net.num_classes and len(embedded) * sum(widths) <= sum(p.numel() for p in net.parameters()):
        embedded = torch.cat([block.temb_proj(embedded) for block in blocks], dim=1)  # [T, sum(widths)]
        for block, end, width in zip(blocks, accumulate(widths), widths, strict=True):
            block.temb_proj = _Columns(slice(end - width, end))
    net.time_embedding = nn.Embedding.from_pretrained(embedded)
