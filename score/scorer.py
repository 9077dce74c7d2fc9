"""Scores a stream of images by several metrics in one pass."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from .files import Unscorable
from .inception_score import SplitSums
from .kid import FeatureSample
from .metrics import METRICS, USUAL, Gathered, compute_figures, needs_of
from .neighbours import KEPT
from .statistics import MOMENTS, Moments, Statistics, exact_device


class Part(NamedTuple):
    """Describes what a `Scorer` gathers in one object, which has the methods update and reduce.

    make: the function of the scorer and the number of splits that makes the object. takes: what its update takes of a
    batch: features, logits, spatial or index. gives: {field of `Gathered`: the function of the object that computes
    it}.
    """

    make: Callable
    takes: tuple
    gives: dict


PARTS = {
    'moments': Part(
        lambda scorer, splits: Moments(scorer.net.dim, scorer.device),
        ('features',),
        {'mu': lambda part: part.mean.cpu().numpy(), 'sigma': lambda part: part.covariance().cpu().numpy()},
    ),
    'split_sums': Part(
        lambda scorer, splits: SplitSums(scorer.num_images, splits, scorer.net.num_classes, scorer.device),
        ('logits', 'index'),
        {'class_probabilities': lambda part: part},
    ),
    'sums_of_5000': Part(
        lambda scorer, splits: SplitSums(scorer.num_images, None, scorer.net.num_classes, scorer.device, size=5000),
        ('logits', 'index'),
        {'probabilities_of_5000': lambda part: part},
    ),
    'spatial_moments': Part(
        lambda scorer, splits: Moments(scorer.net.spatial_dim, scorer.device),
        ('spatial',),
        {'mu_s': lambda part: part.mean.cpu().numpy(), 'sigma_s': lambda part: part.covariance().cpu().numpy()},
    ),
    'sample': Part(
        lambda scorer, splits: FeatureSample(scorer.num_images, scorer.net.dim, scorer.device),
        ('features', 'index'),
        {'sample': lambda part: part.rows},
    ),
    'features': Part(
        lambda scorer, splits: FeatureSample(scorer.num_images, scorer.net.dim, scorer.device, KEPT),
        ('features', 'index'),
        {'features': lambda part: part.rows},
    ),
}


class Scorer:
    """Gathers what the metrics need of f(x) and p(y|x): E f, cov f, a sample of f, and sums of p and p log p.

    Memory does not grow with the number of images, beyond the 5000 features that KID samples,
    or the 50,000 that nearest neighbours are sought among.

    net: a FeatureNet. num_images: how many images will come, over all processes. splits: the number of splits of the
    Inception Score. metrics: keys of `METRICS`; only what they need is gathered, once for all of them.

    Raises ValueError if a metric is not known, if it needs spatial features and the net gives none, or if there are
    fewer images than splits.
    """

    def __init__(self, net, num_images, splits=10, *, metrics=USUAL):
        self.metrics = tuple(metrics)
        if unknown := [name for name in self.metrics if name not in METRICS]:
            raise ValueError(f'metrics must be some of {", ".join(METRICS)}, not {unknown[0]}')
        needs = needs_of(self.metrics)
        if 'mu_s' in needs and not net.spatial_dim:
            raise Unscorable(f'{net.name} gives no spatial features under the {net.protocol} protocol')
        self.net, self.num_images = net, num_images
        self.seen = 0  # images of this process and, after `reduce`, of all
        self.device = exact_device(net.device)
        if not net.num_classes:
            needs -= {'class_probabilities', 'probabilities_of_5000'}
            if self.metrics and not needs:
                raise Unscorable(f'{net.name} tells no classes, which {", ".join(self.metrics)} needs')
        self.parts = {name: part.make(self, splits) for name, part in PARTS.items() if needs & part.gives.keys()}

    def update(self, images, index=None):
        """Takes in one batch, [n, C, H, W], C 1 or 3, uint8 or float in [0, 1]; returns its logits [n, num_classes].

        index: int64 [n], the places of the images in the order of generation. It may be left out if this process draws
        all images in that order.

        Raises ValueError for unusable images or an index outside [0, num_images).
        """
        if index is None:
            index = torch.arange(self.seen, self.seen + len(images))
        if len(index) != len(images):
            raise ValueError(f'{len(images)} images came with {len(index)} indices')
        if len(index) and not 0 <= index.min() <= index.max() < self.num_images:
            raise ValueError(f'images {index.min()} to {index.max()} came, {self.num_images} were announced, from 0')
        features, logits, *spatial = self.net(images, spatial='spatial_moments' in self.parts)
        batch = {'features': features, 'logits': logits, 'index': index} | ({'spatial': spatial[0]} if spatial else {})
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        for name, part in self.parts.items():
            part.update(*(batch[key] for key in PARTS[name].takes))
        self.seen += len(images)
        return logits

    def reduce(self, all_sum):
        """Gives every process the sums over all processes. Call it once, after the last update.

        all_sum(tensor) -> tensor: the sum over the processes, on the same device. Each process calls it in the same
        order.
        """
        for part in self.parts.values():
            part.reduce(all_sum)
        self.seen = int(all_sum(torch.tensor(self.seen, dtype=torch.float64, device=self.device)))

    def gathered(self):
        """Returns what is known of the images, a `Gathered`. Raises ValueError unless all of them came."""
        if self.seen != self.num_images:
            raise ValueError(f'{self.num_images} images were announced, {self.seen} came')
        parts = self.parts.items()
        return Gathered(**{field: give(part) for name, part in parts for field, give in PARTS[name].gives.items()})

    def statistics(self):
        """Returns the Statistics of the images. Raises ValueError unless all came, and at least two.

        The metrics of this scorer must be such that the mean and the covariance are gathered.
        """
        ours = self.gathered()
        sample, features = (None if x is None else x.cpu().numpy() for x in (ours.sample, ours.features))
        made, spatial = {'n': self.num_images, **self.net.made}, {'mu_s': ours.mu_s, 'sigma_s': ours.sigma_s}
        return Statistics(ours.mu, ours.sigma, made, sample, features=features, **spatial)

    def inception_score(self):
        """Returns (IS, its standard deviation over the splits)."""
        return self.parts['split_sums'].score()

    def fid(self, reference, use_torch=False):
        """Returns the FID against `reference`, a Statistics. use_torch: whether to do the linear algebra on the GPU."""
        return compute_figures(['fid'], self.gathered(), reference, use_torch)['FID']

    def result(self, reference, use_torch=False, known=None):
        """Returns the figures of all metrics against `reference`, a Statistics, and the number of images as 'n'.

        By default: {'FID', 'IS', 'IS_std', 'KID', 'KID_std', 'n'}. A figure is None, with a warning, if the reference
        or the net lacks what it needs. known: a Statistics whose moments take the place of those of the images, with n.
        """
        ours, n = self.gathered(), self.num_images
        if known:
            ours = replace(ours, **{key: value for key in MOMENTS if (value := getattr(known, key)) is not None})
            n = known.made.get('n')
        for name in self.metrics:
            if METRICS[name].lacks(ours):
                why = f'{self.net.name} tells no classes'
            elif lacks := METRICS[name].lacks(reference):
                held = 'no features' if 'features' in lacks else f'no {" and no ".join(lacks)}'
                held = 'mu and sigma only' if 'sample' in lacks else held
                why = f'the statistics hold {held}; build them anew to have it'
            else:
                continue
            warnings.warn(f'no {next(iter(METRICS[name].figures))}: {why}', stacklevel=2)
        return compute_figures(self.metrics, ours, reference, use_torch) | {'n': n}


def build_statistics(net, image_batches, num_images, *, features=False, spatial=False):
    """Computes the Statistics of a data set, which must give every image once, in any order.

    image_batches: iterable of [n, C, H, W], uint8 or float in [0, 1], num_images in all. features: whether
    to keep them, up to 50,000. spatial: whether to compute the moments of spatial features too.

    Raises ValueError for unusable images, fewer than two, or another number of them.
    """
    scorer = Scorer(net, num_images, metrics=['fid', 'kid', *['prdc'] * features, *['sfid'] * spatial])
    for images in image_batches:
        scorer.update(images)
    return scorer.statistics()
