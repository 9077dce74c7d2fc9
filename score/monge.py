"""Computes the Monge Inception Distance, which needs fewer images than FID, with a bootstrap interval."""

import torch

from .files import Unscorable
from .kid import SEED

DIRECTIONS, RESAMPLES = 1000, 200
TOGETHER = 100  # directions whose projections are in memory at once: 100 x 5000 float64 are 4 MB


def mind(x, y, directions=DIRECTIONS, resamples=RESAMPLES, seed=SEED):
    """MIND = 3 d mean_{u, j} (sort(X u)_j - sort(Y u)_j)^2 for random unit vectors u (arXiv:2605.06797).

    This is 3 d times the squared sliced Wasserstein-2 distance of n features to n others (Berthet et al. 2026). If a
    side has more, n of them are chosen at random. The choice and the directions are torch-fidelity's of the same seed.

    The interval is a bootstrap's: each side is drawn anew from itself with replacement, and the values that this gives
    are shifted so that their mean is MIND. It holds the mean over other n images, for these directions, with 95%, and
    for equal distributions with more. It does not hold the limit for many images, which lies lower.

    x, y: [n, d] and [m, d], on the same device. Returns (MIND, low, high), floats. Raises Unscorable for fewer than two
    features on a side, and for features that are not finite.
    """
    n, dim = min(len(x), len(y)), x.shape[1]
    if n < 2:
        raise Unscorable(f'MIND needs at least 2 images on each side, got {len(x)} and {len(y)}')
    generator = torch.Generator().manual_seed(seed)
    x, y = (_at_random(side, n, generator).double() for side in (x, y))
    u = torch.randn(directions, dim, generator=generator)
    u = (u / u.norm(dim=1, keepdim=True)).to(x)
    draws = torch.randint(n, (resamples, 2, n), generator=generator)
    counts = torch.zeros_like(draws).scatter_add_(2, draws, torch.ones_like(draws)).to(x.device)  # [resamples, 2, n]
    squares = torch.zeros(1 + resamples, dtype=torch.float64, device=x.device)
    for part in u.split(TOGETHER):
        (a, place_a), (b, place_b) = ((part @ side.T).sort(dim=1) for side in (x, y))  # [TOGETHER, n]
        squares[0] += (a - b).square().sum()
        for i, (count_a, count_b) in enumerate(counts, 1):
            squares[i] += (_repeat(a, count_a[place_a]) - _repeat(b, count_b[place_b])).square().sum()
    value, *resampled = (3 * dim / (directions * n) * squares).cpu()
    if not value.isfinite():
        raise Unscorable('the features hold NaN or infinity')
    resampled = torch.stack(resampled)
    low, high = value - resampled.mean() + resampled.quantile(resampled.new_tensor([0.025, 0.975]))
    return value.item(), low.item(), high.item()


def _at_random(side, n, generator):
    return side if len(side) == n else side[torch.randperm(len(side), generator=generator)[:n].to(side.device)]


def _repeat(values, counts):
    """Repeats sorted values as often as they were drawn, flat. Each row has as many as before, so rows stay in line."""
    return values.flatten().repeat_interleave(counts.flatten(), output_size=values.numel())
