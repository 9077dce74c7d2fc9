"""One pass over a stream of images, for FID, IS and KID at once."""

import warnings

import torch

from .fid import calculate_frechet_distance
from .inception_score import SplitSums
from .kid import FeatureSample, kernel_inception_distance
from .progress import silent
from .statistics import Moments, Statistics, exact_device


class Scorer:
    """E f, cov f, sums of p and p log p, and a sample of f: all that FID, IS and KID need of f(x), p(y|x).

    Memory does not grow with the number of images beyond the 5000 features that KID samples.

    net: a FeatureNet. num_images: how many will come, over all processes. splits: of the Inception Score.
    Raises ValueError where there are fewer images than splits.
    """

    def __init__(self, net, num_images, splits=10):
        self.net, self.num_images, self.seen = net, num_images, 0
        self.device = exact_device(net.device)
        self.moments = Moments(net.dim, self.device)
        self.split_sums = SplitSums(num_images, splits, net.num_classes, self.device)
        self.sample = FeatureSample(num_images, net.dim, self.device)

    def update(self, images, index=None):
        """Scores one batch, [n, C, H, W], C 1 or 3, uint8 or float in [0, 1]; returns its logits [n, num_classes].

        index: int64 [n], the images' places in the order of generation, where this process does not draw them all in
        that order. Raises ValueError for unusable images or an index outside [0, num_images).
        """
        if index is None:
            index = torch.arange(self.seen, self.seen + len(images))
        if len(index) != len(images):
            raise ValueError(f'{len(images)} images came with {len(index)} indices')
        if len(index) and not 0 <= index.min() <= index.max() < self.num_images:
            raise ValueError(f'images {index.min()} to {index.max()} came, {self.num_images} were announced, from 0')
        features, logits = self.net(images)
        index, features = index.to(self.device), features.to(self.device)
        self.moments.update(features)
        self.split_sums.update(logits.to(self.device), index)
        self.sample.update(features, index)
        self.seen += len(images)
        return logits

    def reduce(self, all_sum):
        """Gives every process the sums of all, once, after the last update.

        all_sum(tensor) -> tensor: the sum over the processes, on the same device; called in the same order by each.
        """
        for part in (self.moments, self.split_sums, self.sample):
            part.reduce(all_sum)

    def statistics(self):
        """The Statistics of the images; ValueError unless all came, and at least two."""
        if self.moments.n != self.num_images:
            raise ValueError(f'{self.num_images} images were announced, {int(self.moments.n)} came')
        mu, sigma, sample = (x.cpu().numpy() for x in (self.moments.mean, self.moments.covariance(), self.sample.rows))
        return Statistics(mu, sigma, {'n': self.num_images, **self.net.made}, sample)

    def inception_score(self):
        """(IS, its standard deviation over the splits)."""
        return self.split_sums.score()

    def fid(self, reference, use_torch=False):
        """FID against `reference`, a Statistics; use_torch: the linear algebra on the GPU."""
        ours = self.statistics()
        return calculate_frechet_distance(ours.mu, ours.sigma, reference.mu, reference.sigma, use_torch=use_torch)

    def kid(self, reference):
        """(KID, its standard deviation over the subsets), or (None, None) where `reference` keeps no features."""
        if reference.sample is None:
            warnings.warn('no KID: the statistics hold mu and sigma only; build them anew to have it', stacklevel=2)
            return None, None
        return kernel_inception_distance(self.sample.rows, torch.from_numpy(reference.sample).to(self.device))

    def result(self, reference, use_torch=False):
        """{'FID', 'IS', 'IS_std', 'KID', 'KID_std', 'n'} against `reference`, a Statistics."""
        fid = self.fid(reference, use_torch)
        inception_score, inception_score_std = self.inception_score()
        kid, kid_std = self.kid(reference)
        return {
            'FID': fid,
            'IS': inception_score,
            'IS_std': inception_score_std,
            'KID': kid,
            'KID_std': kid_std,
            'n': self.num_images,
        }


def build_statistics(net, image_batches, num_images, progress=silent):
    """The Statistics of a data set: every image once, in any order.

    image_batches: iterable of [n, C, H, W], uint8 or float in [0, 1], num_images in all. progress: as tqdm is.
    Raises ValueError for unusable images, fewer than two, or another number of them.
    """
    scorer = Scorer(net, num_images, splits=1)
    with progress(desc='statistics', total=num_images, unit='image', leave=False) as bar:
        for images in image_batches:
            scorer.update(images)
            bar.update(len(images))
    return scorer.statistics()
