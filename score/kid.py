"""Computes the Kernel Inception Distance from a bounded sample of the features."""

import warnings

import numpy as np
import torch

from .files import Unscorable

SUBSETS, SUBSET_SIZE = 100, 1000
SAMPLE_SIZE = 5000  # features kept of each side: 5000 x 2048 float32 are 41 MB, while 50,000 would be 410 MB
SEED = 2020  # torch-fidelity's


def kept_indices(num_images, size):
    """Returns which of num_images features a sample of `size` holds: int64 [min(num_images, size)], ascending."""
    kept = np.random.RandomState(SEED).choice(num_images, min(num_images, size), replace=False)
    return torch.from_numpy(np.sort(kept))


class FeatureSample:
    """Keeps a uniform sample without replacement of min(N, 5000) of N features, so that memory is bounded.

    The sample is drawn before the features come. Which of the N images are kept depends on N alone, not on batches,
    order or processes. Up to 5000 images all are kept, in generation order, and KID is exactly that of all images. If
    there are more, the subsets of KID come from the sample. KID is still unbiased, because a uniform subset of a
    uniform sample is a uniform subset.

    limit: another number than 5000.
    """

    def __init__(self, num_images, dim, device='cpu', limit=None):
        size = min(num_images, limit or SAMPLE_SIZE)
        self.kept = kept_indices(num_images, size).to(device)
        self.rows = torch.zeros(size, dim, device=device)

    def update(self, features, index):
        """Takes in a batch. features: [n, dim]. index: int64 [n], where each image stands in the generation."""
        slot = torch.searchsorted(self.kept, index).clamp(max=len(self.kept) - 1)
        hit = self.kept[slot] == index
        self.rows[slot[hit]] = features[hit].float()

    def reduce(self, all_sum):
        """Replaces the rows of each process by those of all. `all_sum(tensor)` gives the sum over the processes."""
        self.rows = all_sum(self.rows)


def kernel_sums(x, y, out):
    """Computes sum and trace of k(x_i, y_j) = (x_i . y_j / d + 1)^3 (arXiv:1801.01401), float64. `out` becomes k."""
    k = torch.mm(x, y.T, out=out).div_(x.shape[1]).add_(1).pow_(3)  # [n, m]
    return k.sum().item(), k.trace().item()


def kernel_inception_distance(x, y, subsets=SUBSETS, subset_size=SUBSET_SIZE, seed=SEED):
    """MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean k(x_i, y_j) (arXiv:1801.01401, eq. 4).

    This is the unbiased estimator, on `subsets` random subsets of `subset_size` features of either side. For the same
    seed the subsets are those of torch-fidelity. If a side has fewer features, the subsets are that small, with a
    warning.

    x, y: [n, d] and [m, d]. Returns (mean, standard deviation with ddof 0) over the subsets, floats.

    Raises Unscorable for fewer than two features, ValueError for different dimensions.
    """
    if x.shape[1] != y.shape[1]:
        raise ValueError(f'features of different dimension: {x.shape[1]} against {y.shape[1]}')
    size = min(subset_size, len(x), len(y))
    if size < 2:
        raise Unscorable(f'KID needs at least 2 images on each side, got {len(x)} and {len(y)}')
    if size < subset_size:
        warnings.warn(f'KID on subsets of {size}, not {subset_size}, of {len(x)} and {len(y)} images', stacklevel=2)
    rng = np.random.RandomState(seed)
    # Every subset reuses these: allocating them a hundred times would leave the heap in pieces, hundreds of MB.
    rows = [side.new_empty(size, side.shape[1], dtype=torch.float64) for side in (x, y)]
    out = x.new_empty(size, size, dtype=torch.float64)
    values = []
    for _ in range(subsets):
        for side, subset in zip((x, y), rows, strict=True):
            chosen = torch.from_numpy(rng.choice(len(side), size, replace=False)).to(side.device)
            subset.copy_(side[chosen])
        within = 0
        for subset in rows:
            total, diagonal = kernel_sums(subset, subset, out)
            within += (total - diagonal) / (size * (size - 1))
        between, _ = kernel_sums(*rows, out)
        values.append(within - 2 * between / size**2)
    return float(np.mean(values)), float(np.std(values))


def kid_interval(x, y):
    """Computes the unbiased MMD^2 of `kernel_inception_distance` over all pairs, once, and a 95% interval for it.

    The interval is 1.96 standard errors to either side. The error is that of the jackknife, which leaves out one
    feature at a time, on both sides (Arvesen 1969). For equal distributions it is too large rather than too small.

    x, y: [n, d] and [m, d]. Returns (MMD^2, low, high), floats. Raises Unscorable for fewer than three features.
    """
    if min(len(x), len(y)) < 3:
        raise Unscorable(f'an interval for KID needs at least 3 images on each side, got {len(x)} and {len(y)}')
    cross_x, cross_y = _sums_of_rows(x, y), _sums_of_rows(y, x)
    within = [_sums_of_rows(side, side) - (side.double().square().mean(1) + 1) ** 3 for side in (x, y)]  # without i = j
    means = [rows.sum() / (len(rows) * (len(rows) - 1)) for rows in within]
    distance = means[0] + means[1] - 2 * cross_x.sum() / (len(x) * len(y))
    variance = 0
    for rows, cross, mean, other in zip(within, (cross_x, cross_y), means[::-1], (len(y), len(x)), strict=True):
        n = len(rows)
        left_out = (rows.sum() - 2 * rows) / ((n - 1) * (n - 2)) + mean - 2 * (cross.sum() - cross) / ((n - 1) * other)
        variance += (n - 1) / n * (left_out - left_out.mean()).square().sum()
    reach = 1.96 * variance.sqrt()
    return distance.item(), (distance - reach).item(), (distance + reach).item()


def _sums_of_rows(x, y):
    """Computes sum_j k(x_i, y_j), float64 [n], a thousand rows at a time."""
    y = y.double()
    return torch.cat([((part.double() @ y.T) / x.shape[1] + 1).pow(3).sum(1) for part in x.split(1000)])
