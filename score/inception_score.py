"""Computes the Inception Score from sums over each split, so that no probabilities are kept."""

import torch

from .files import Unscorable


class SplitSums:
    """Sums p, p log p and the count of each split, in float64. The Inception Score needs nothing else of the images.

    Split s holds the images [s N // splits, (s + 1) N // splits) in the order of generation. So N, the number of
    images, must be known at the start. If a size takes the place of the number of splits, every split but the last
    holds that many images, as in guided-diffusion's evaluator.

    Raises Unscorable if a split would be empty.
    """

    def __init__(self, num_images, splits, num_classes, device='cpu', *, size=None):
        if size:
            splits = -(-num_images // size)
        if not 1 <= splits <= num_images:
            raise Unscorable(f'{splits} splits need at least {max(splits, 1)} images, got {num_images}')
        ends = [min((s + 1) * size, num_images) if size else (s + 1) * num_images // splits for s in range(splits)]
        self.num_images = num_images
        self.ends = torch.tensor(ends, device=device)
        self.p = torch.zeros(splits, num_classes, dtype=torch.float64, device=device)
        self.p_log_p = torch.zeros(splits, dtype=torch.float64, device=device)
        self.count = torch.zeros(splits, dtype=torch.float64, device=device)

    def update(self, logits, index):
        """Adds a batch. logits: [n, num_classes]. index: int64 [n], where each image stands in the generation."""
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        p_log_p = torch.where(p == 0, 0, p * log_p).sum(1)  # 0 log 0 = 0
        split = torch.searchsorted(self.ends, index, right=True)
        self.p.index_add_(0, split, p)
        self.p_log_p.index_add_(0, split, p_log_p)
        self.count.index_add_(0, split, torch.ones_like(p_log_p))

    def reduce(self, all_sum):
        """Replaces the sums of each process by those of all. `all_sum(tensor)` gives the sum over the processes."""
        self.p, self.p_log_p, self.count = all_sum(self.p), all_sum(self.p_log_p), all_sum(self.count)

    def score(self):
        """Computes exp(E_x KL(p(y|x) || p(y))) (arXiv:1606.03498); returns its mean and standard deviation over splits.

        The standard deviation has ddof 0.

        Raises ValueError unless every image came.
        """
        if self.count.sum() != self.num_images:
            raise ValueError(f'{self.num_images} images were announced, {int(self.count.sum())} came')
        entropy = torch.special.entr(self.p / self.count[:, None]).sum(1)  # the entropy of p(y)
        scores = (self.p_log_p / self.count + entropy).exp()
        return scores.mean().item(), scores.std(correction=0).item()
