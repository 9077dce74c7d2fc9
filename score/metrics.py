"""Registers the metrics: what each needs to know of the images, and the figures that it computes from that.

A new metric is one entry in `METRICS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from .fid import calculate_frechet_distance
from .inception_score import SplitSums
from .kid import kernel_inception_distance


@dataclass(frozen=True)
class Gathered:
    """Holds what is known of the images to be scored. A field is None if it was not gathered.

    mu, sigma: the mean [d] and the covariance [d, d] of the features, float64. sample: some of the features, [m, d].
    class_probabilities: the sums of p(y|x) and of p(y|x) log p(y|x) over each split.
    """

    mu: np.ndarray | None = None
    sigma: np.ndarray | None = None
    sample: torch.Tensor | None = None
    class_probabilities: SplitSums | None = None


class Metric(NamedTuple):
    """Describes a metric by the figures that it computes.

    figures: the names of the figures.
    needs: the fields of `Gathered` that compute uses. Those that a `Statistics` has too (mu, sigma, sample) are needed
        of the reference as well.
    compute: the function (ours, reference, use_torch) of a `Gathered` and a `Statistics` that returns one value per
        figure. use_torch: whether to do the linear algebra on the GPU.
    """

    figures: tuple
    needs: tuple
    compute: Callable

    def lacks(self, known):
        """Lists the needs that a `Gathered` or a `Statistics` does not have."""
        return [need for need in self.needs if getattr(known, need, True) is None]


def _fid(ours, reference, use_torch):
    distance = calculate_frechet_distance(ours.mu, ours.sigma, reference.mu, reference.sigma, use_torch=use_torch)
    return (distance,)


def _inception_score(ours, reference, use_torch):
    return ours.class_probabilities.score()


def _kid(ours, reference, use_torch):
    return kernel_inception_distance(ours.sample, torch.from_numpy(reference.sample).to(ours.sample.device))


METRICS = {
    'fid': Metric(('FID',), needs=('mu', 'sigma'), compute=_fid),
    'is': Metric(('IS', 'IS_std'), needs=('class_probabilities',), compute=_inception_score),
    'kid': Metric(('KID', 'KID_std'), needs=('sample',), compute=_kid),
}


def figure_names():
    """Lists the figures of all metrics."""
    return tuple(figure for metric in METRICS.values() for figure in metric.figures)


def compute_figures(metrics, ours, reference, use_torch=False):
    """Computes metrics by their names; returns {figure: value}. A figure is None if one side lacks what it needs.

    ours: a `Gathered`. reference: a `Statistics`.
    """
    result = {}
    for metric in (METRICS[name] for name in metrics):
        if metric.lacks(ours) or metric.lacks(reference):
            result |= dict.fromkeys(metric.figures)
        else:
            result |= zip(metric.figures, metric.compute(ours, reference, use_torch), strict=True)
    return result


def compare_statistics(statistics, reference, use_torch=False):
    """Computes every metric of one `Statistics` against another; returns {figure: value}.

    The figures that need the images themselves, such as the Inception Score, are None.
    """
    sample = None if statistics.sample is None else torch.from_numpy(statistics.sample)
    return compute_figures(METRICS, Gathered(statistics.mu, statistics.sigma, sample), reference, use_torch)
