"""Measures how far one cloud of points in the plane lies from another."""

import math

import torch


def sliced_wasserstein(a, b, directions=128):
    """Averages the Wasserstein-1 distance of projections over directions (Bonneel et al. 2015), in the points' units.

    a, b: [N, 2]; if one has more points, its last ones are left out. The directions are spread evenly over half a turn,
    so the same points give the same value.

    Raises ValueError for points of another shape.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != 2 or b.shape[1] != 2:
        raise ValueError(f'points must be [N, 2], not {list(a.shape)} and {list(b.shape)}')
    n = min(len(a), len(b))
    angles = torch.arange(directions, dtype=torch.float64) * (math.pi / directions)
    onto = torch.stack([angles.cos(), angles.sin()])  # [2, directions]
    projected = [(x[:n].double() @ onto).sort(dim=0).values for x in (a, b)]  # [n, directions]
    return (projected[0] - projected[1]).abs().mean().item()
