"""Compares sets of features by their nearest neighbours: precision, recall, density and coverage, and authenticity.

Distances are float64, on the device of the features. They are computed in tiles of at most 2048 x 2048. With 2048
features that takes about 250 MB, whatever the number of images. The features themselves take 410 MB a side at 50,000
images, because `KEPT` bounds their number.
"""

import torch

from .files import Unscorable

KEPT = 50000  # features kept of each side, as in Kynkaanniemi et al. 2019: 50,000 x 2048 float32 are 410 MB
TILE = 2048
MANIFOLD_K, DENSITY_K = 3, 5  # neighbours of precision and recall, and of density and coverage, as published
# Squared distances that differ by less than this times the largest squared norm are equal. Rounding in float64 is a
# thousand times smaller, so that ties are found as exactly as if the features were integers.
TIE = 1e-12


def tiles(x, y):
    """Yields (rows, columns, d^2), d^2 float64 [r, c], for slices that cover all pairs. x: [n, d]. y: [m, d]."""
    for i in range(0, len(x), TILE):
        a = x[i : i + TILE].double()
        for j in range(0, len(y), TILE):
            b = y[j : j + TILE].double()
            squares = torch.addmm(b.square().sum(1), a, b.T, alpha=-2) + a.square().sum(1)[:, None]
            yield slice(i, i + len(a)), slice(j, j + len(b)), squares.clamp_(min=0)


def tie_width(*sides):
    """Returns the largest difference of squared distances that counts as none. Raises Unscorable for NaN, infinity."""
    largest = max(part.double().square().sum(1).max().item() for side in sides for part in side.split(TILE))
    if not largest < float('inf'):
        raise Unscorable('the features hold NaN or infinity')
    return TIE * largest


def nearest(x, y, k=1, *, same=False):
    """Finds the k nearest rows of y for each row of x; returns (d^2 [n, k] ascending, their indices [n, k]).

    same: whether y is x; a row is then no neighbour of itself.
    """
    squares = x.new_full((len(x), k), float('inf'), dtype=torch.float64)
    indices = torch.zeros(len(x), k, dtype=torch.int64, device=x.device)
    for rows, columns, tile in tiles(x, y):
        if same and rows == columns:
            tile.fill_diagonal_(float('inf'))
        found, where = tile.topk(min(k, tile.shape[1]), largest=False)
        squares[rows], order = torch.cat([squares[rows], found], 1).topk(k, largest=False)
        indices[rows] = torch.cat([indices[rows], where + columns.start], 1).gather(1, order)
    return squares, indices


def mean_and_error(values):
    """Returns the mean of values [n] and its standard error, std / sqrt(n) with ddof 1, floats."""
    values = values.double()
    return values.mean().item(), values.std().item() / len(values) ** 0.5


def prdc(ours, real):
    """Computes how much two sets of features overlap, from balls around each that reach to its k-th neighbour.

    precision: the share of ours in a ball of real ones; recall: of the real ones in a ball of ours (Kynkaanniemi et al.
    2019, arXiv:1904.06991, eq. 1 and 2), k = 3, balls with their surface. density: in how many balls of real ones each
    of ours lies, over k; coverage: the share of the balls of real ones with one of ours in them (Naeem et al. 2020,
    arXiv:2002.09797), k = 5, balls without their surface, as in the code of either paper.

    ours: [n, d]. real: [m, d], on the same device. Returns (value, standard error) of each, eight floats. The errors
    are over the images that are counted, for given balls.

    Raises Unscorable unless each side has more than five images and finite features.
    """
    if min(len(ours), len(real)) <= DENSITY_K:
        least = f'at k {MANIFOLD_K} and {DENSITY_K} need at least {DENSITY_K + 1} images on each side'
        raise Unscorable(f'precision, recall, density and coverage {least}, got {len(ours)} and {len(real)}')
    tie = tie_width(ours, real)
    reach = nearest(ours, ours, MANIFOLD_K, same=True)[0][:, -1:] + tie  # [n, 1]
    squares = nearest(real, real, DENSITY_K, same=True)[0]
    manifold, ball = squares[:, MANIFOLD_K - 1] + tie, squares[:, DENSITY_K - 1] - tie  # [m]
    precise, recalled, covered = (torch.zeros(len(x), dtype=torch.bool, device=x.device) for x in (ours, real, real))
    balls = torch.zeros(len(ours), dtype=torch.int64, device=ours.device)
    for rows, columns, tile in tiles(ours, real):
        precise[rows] |= (tile <= manifold[columns]).any(1)
        recalled[columns] |= (tile <= reach[rows]).any(0)
        inside = tile < ball[columns]
        balls[rows] += inside.sum(1)
        covered[columns] |= inside.any(0)
    counted = precise, recalled, balls.double() / DENSITY_K, covered
    return tuple(number for values in counted for number in mean_and_error(values))


def authenticity(ours, training, held_out):
    """Computes how many images are no copies of training images, and how near to these they lie for new images.

    AuthPct: the percentage of ours that lie farther from their nearest training image than that lies from its own
    nearest neighbour in the training set (Alaa et al. 2022, arXiv:2102.08921). If several are nearest, the
    farthest of their neighbours counts.

    Delta_T: P(D > D_0) + P(D = D_0) / 2, with D the distance of one of ours to the training set and D_0 that of a
    held-out real image (Meehan et al. 2020, arXiv:2004.05675, the statistic of their test on a single cell). It is 1/2
    if both are as near, and 0 if all of ours are nearer.

    ours: [n, d]. training: [m, d]. held_out: [h, d]. Returns AuthPct and its standard error, Delta_T and its
    standard error.

    Raises Unscorable for fewer than two rows on a side, and for features that are not finite.
    """
    sizes = [len(side) for side in (ours, training, held_out)]
    if min(sizes) < 2:
        raise Unscorable(
            'authenticity needs at least 2 images, of training and held out too, got {}, {}, {}'.format(*sizes)
        )
    tie = tie_width(ours, training, held_out)
    gap = nearest(training, training, same=True)[0][:, 0]  # [m]
    distance, distance_0 = (nearest(side, training)[0][:, 0] for side in (ours, held_out))
    widest = torch.zeros_like(distance)
    for rows, columns, tile in tiles(ours, training):
        gaps = torch.where(tile <= distance[rows, None] + tie, gap[columns], 0)
        widest[rows] = torch.maximum(widest[rows], gaps.amax(1))
    percentage, error = mean_and_error(distance > widest + tie)
    beyond, ahead = _share_below(distance, distance_0, tie), _share_below(distance_0, distance, tie)
    delta, from_ours = mean_and_error(beyond)
    return 100 * percentage, 100 * error, delta, (from_ours**2 + mean_and_error(ahead)[1] ** 2) ** 0.5


def _share_below(x, y, tie):
    """Computes for each of x, [n], the share of y, [m], that is smaller; half of those that are tied count."""
    y = y.sort().values
    places = torch.searchsorted(y, x - tie) + torch.searchsorted(y, x + tie, right=True)
    return places.double() / (2 * len(y))
