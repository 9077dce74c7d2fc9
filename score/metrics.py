"""Registers the metrics: what each needs to know of the images, and the figures that it computes from that.

A new metric is one entry in `METRICS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from .fid import calculate_frechet_distance
from .inception_score import SplitSums
from .kid import kernel_inception_distance, kid_interval
from .monge import DIRECTIONS, RESAMPLES, mind
from .neighbours import DENSITY_K, MANIFOLD_K, authenticity, prdc
from .statistics import MOMENTS


@dataclass(frozen=True)
class Gathered:
    """Holds what is known of the images to be scored. A field is None if it was not gathered.

    mu, sigma: the mean [d] and the covariance [d, d] of the features, float64. sample: some of the features, [m, d].
    features: all of them, up to 50,000, [m, d].
    class_probabilities: the sums of p(y|x) and of p(y|x) log p(y|x) over each split. probabilities_of_5000: the same
    over splits of 5,000 images. mu_s, sigma_s: the mean and the covariance of the spatial features, float64.
    """

    mu: np.ndarray | None = None
    sigma: np.ndarray | None = None
    sample: torch.Tensor | None = None
    features: torch.Tensor | None = None
    class_probabilities: SplitSums | None = None
    probabilities_of_5000: SplitSums | None = None
    mu_s: np.ndarray | None = None
    sigma_s: np.ndarray | None = None


class Metric(NamedTuple):
    """Describes a metric by the figures that it computes.

    figures: {name: how its value is printed}. A text that starts with a colon follows the name of the figure. Any other
        follows the figure before, as that of a standard deviation or a standard error does.
    needs: the fields of `Gathered` that compute uses. Those that a `Statistics` has too (mu, sigma, sample, features,
        mu_s, sigma_s) are needed of the reference as well. Some are of a `Statistics` alone (training, held_out).
    compute: the function (ours, reference, use_torch) of a `Gathered` and a `Statistics` that returns one value per
        figure. use_torch: whether to do the linear algebra on the GPU.
    about: what is printed behind the figures on a line of their own, with the numbers of features that
        `compute_figures` returns filled in. Without it they are on the first line.
    best: {name of a figure: min or max}, the function that picks the better one of two values. A figure that is left
        out ranks nothing, as Delta_T, which is best in between.
    """

    figures: dict
    needs: tuple
    compute: Callable
    about: str = ''
    best: dict = MappingProxyType({})

    def lacks(self, known):
        """Lists the needs that a `Gathered` or a `Statistics` does not have."""
        return [need for need in self.needs if getattr(known, need, True) is None]


def _fid(ours, reference, use_torch):
    distance = calculate_frechet_distance(ours.mu, ours.sigma, reference.mu, reference.sigma, use_torch=use_torch)
    return (distance,)


def _sfid(ours, reference, use_torch):
    theirs = reference.mu_s, reference.sigma_s
    return (calculate_frechet_distance(ours.mu_s, ours.sigma_s, *theirs, use_torch=use_torch),)


def _inception_score(ours, reference, use_torch):
    return ours.class_probabilities.score()


def _inception_score_of_5000(ours, reference, use_torch):
    return ours.probabilities_of_5000.score()[:1]


def _beside(features, array):
    return torch.from_numpy(array).to(features.device)


def _kid(ours, reference, use_torch):
    return kernel_inception_distance(ours.sample, _beside(ours.sample, reference.sample))


def _kid_interval(ours, reference, use_torch):
    return kid_interval(ours.sample, _beside(ours.sample, reference.sample))


def _mind(ours, reference, use_torch):
    return mind(ours.sample, _beside(ours.sample, reference.sample))


def _prdc(ours, reference, use_torch):
    return prdc(ours.features, _beside(ours.features, reference.features))


def _precision_recall(ours, reference, use_torch):
    return _prdc(ours, reference, use_torch)[:4]


def _authenticity(ours, reference, use_torch):
    real = reference.training, reference.held_out
    return authenticity(ours.features, *(_beside(ours.features, side) for side in real))


def _with_errors(*names):
    return {figure: text for name in names for figure, text in ((name, ': {:.4f}'), (f'{name}_se', '({:.4f})'))}


MANIFOLD = f'Precision_k{MANIFOLD_K}', f'Recall_k{MANIFOLD_K}'
PRDC = *MANIFOLD, f'Density_k{DENSITY_K}', f'Coverage_k{DENSITY_K}'

METRICS = {
    'is': Metric(
        {'IS': ':{:7.3f}', 'IS_std': '({:.3f})'},
        needs=('class_probabilities',),
        compute=_inception_score,
        best={'IS': max},
    ),
    'is_5000': Metric(
        {'IS_splits_of_5000': ':{:7.3f}'},
        needs=('probabilities_of_5000',),
        compute=_inception_score_of_5000,
        best={'IS_splits_of_5000': max},
    ),
    'fid': Metric({'FID': ':{:8.3f}'}, needs=('mu', 'sigma'), compute=_fid, best={'FID': min}),
    'sfid': Metric({'sFID': ':{:8.3f}'}, needs=('mu_s', 'sigma_s'), compute=_sfid, best={'sFID': min}),
    'kid': Metric({'KID': ': {:.5f}', 'KID_std': '({:.5f})'}, needs=('sample',), compute=_kid, best={'KID': min}),
    'kid_interval': Metric(
        {'KID_all': ': {:.5f}', 'KID_all_low': ' (95%: {:.5f}', 'KID_all_high': ' to {:.5f})'},
        needs=('sample',),
        compute=_kid_interval,
        about=' (n {n_sample} against {n_reference_sample})',
        best={'KID_all': min},
    ),
    'mind': Metric(
        {'MIND': ': {:.3f}', 'MIND_low': ' (95%: {:.3f}', 'MIND_high': ' to {:.3f})'},
        needs=('sample',),
        compute=_mind,
        about=f' ({DIRECTIONS} directions, {RESAMPLES} resamples, n {{n_sample}} against {{n_reference_sample}}, the '
        'larger cut to the smaller)',
        best={'MIND': min},
    ),
    'precision_recall': Metric(
        _with_errors(*MANIFOLD),
        needs=('features',),
        compute=_precision_recall,
        about=' (n {n_features} against {n_reference})',
        best=dict.fromkeys(MANIFOLD, max),
    ),
    'prdc': Metric(
        _with_errors(*PRDC),
        needs=('features',),
        compute=_prdc,
        about=' (n {n_features} against {n_reference})',
        best=dict.fromkeys(PRDC, max),
    ),
    'authenticity': Metric(
        {'AuthPct': ': {:.2f}', 'AuthPct_se': '({:.2f})', 'Delta_T': ': {:.4f}', 'Delta_T_se': '({:.4f})'},
        needs=('features', 'training', 'held_out'),
        compute=_authenticity,
        about=' (k 1, n {n_features} against {n_training} of training and {n_held_out} held out)',
    ),
}
USUAL = ('fid', 'is', 'kid')  # those that are computed if none are named
# A name for several: what guided-diffusion's evaluator prints, in its order.
ALIASES = {'openai': ['is_5000', 'fid', 'sfid', 'precision_recall']}


def needs_of(metrics):
    """Returns the set of what metrics, by their names, need."""
    return {need for name in metrics for need in METRICS[name].needs}


def that_need(need, metrics):
    """Lists those of metrics, by their names, that need something."""
    return [name for name in metrics if need in METRICS[name].needs]


def figure_names():
    """Lists the figures of all metrics."""
    return tuple(dict.fromkeys(figure for metric in METRICS.values() for figure in metric.figures))


def main_figures():
    """Lists the figures of all metrics but those that belong to one before, such as a standard error."""
    texts = ((figure, text) for metric in METRICS.values() for figure, text in metric.figures.items())
    return tuple(dict.fromkeys(figure for figure, text in texts if text.startswith(':')))


def ranking(metrics):
    """Returns {figure: min or max}, which value is the better one, for the figures of metrics, by their names."""
    return {figure: best for name in metrics for figure, best in METRICS[name].best.items()}


def describe_figures(result, label, metrics=None):
    """Lists the lines to print: the figures that have a value, in the order of `METRICS`.

    A metric that says more of its figures has a line of its own. The other metrics share the first line.

    result: {figure: value}, as `Scorer.result` returns it. label: a function that gives the printed name of a figure.
    metrics: the names of those that were computed, by default of all.
    """
    shared, lines = [], []
    for metric in (metric for name, metric in METRICS.items() if metrics is None or name in metrics):
        parts = []
        for name, text in metric.figures.items():
            if result.get(name) is not None:
                parts += [label(name)] if text.startswith(':') else []
                parts[-1] += text.format(result[name])
        if not metric.about:
            shared += parts
        elif parts:
            lines.append(', '.join(parts) + metric.about.format(**result))
    return [', '.join(shared), *lines] if shared else lines


def compute_figures(metrics, ours, reference, use_torch=False):
    """Computes metrics by their names; returns {figure: value}. A figure is None if one side lacks what it needs.

    If one of them says more of its figures, the result has the numbers of features of both sides too.

    ours: a `Gathered`. reference: a `Statistics`.
    """
    result = {}
    for metric in (METRICS[name] for name in metrics):
        if metric.lacks(ours) or metric.lacks(reference):
            result |= dict.fromkeys(metric.figures)
        else:
            result |= zip(metric.figures, metric.compute(ours, reference, use_torch), strict=True)
    if any(METRICS[name].about for name in metrics):
        sides = {
            'n_sample': ours.sample,
            'n_reference_sample': reference.sample,
            'n_features': ours.features,
            'n_reference': reference.features,
            'n_training': reference.training,
            'n_held_out': reference.held_out,
        }
        result |= {name: len(side) for name, side in sides.items() if side is not None}
    return result


def compare_statistics(statistics, reference, use_torch=False, *, metrics=USUAL):
    """Computes metrics, by their names, of one `Statistics` against another; returns {figure: value}.

    The figures that need the images themselves, such as the Inception Score, are None.
    """
    sample = None if statistics.sample is None else torch.from_numpy(statistics.sample)
    moments = {key: getattr(statistics, key) for key in MOMENTS}
    return compute_figures(metrics, Gathered(sample=sample, **moments), reference, use_torch)
