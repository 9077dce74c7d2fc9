"""Gives FID and IS of images in one call, under the names that pytorch-ddpm has for it."""

from dataclasses import replace

import torch

from .features import inception_net
from .images import batches
from .scorer import Scorer
from .statistics import load_statistics


def get_inception_and_fid_score(
    images,
    fid_cache,
    num_images=None,
    splits=10,
    batch_size=50,
    use_torch=False,
    verbose=False,
    parallel=False,
    *,
    net=None,
):
    """Computes IS (arXiv:1606.03498) and FID (arXiv:1706.08500, eq. 6) of images in one pass through the network.

    images: array, tensor or iterable of [C, H, W], C 1 or 3, uint8 or float in [0, 1]. An iterable without a length
    needs num_images. fid_cache: a statistics file. use_torch: whether to do the linear algebra on the GPU. verbose:
    whether to show a bar. parallel: whether to run the network on all GPUs. net: a FeatureNet, by default Inception
    with the standard weights.

    Returns ((IS, its standard deviation over the splits), FID). Raises ValueError for unusable images, ScoreError for
    unusable files.
    """
    name, how = 'get_inception_and_fid_score', (num_images, batch_size, verbose, parallel, net)
    scorer, reference = _scored(name, ('is', 'fid'), images, *how, splits=splits, fid_cache=fid_cache)
    return scorer.inception_score(), scorer.fid(reference, use_torch)


def get_fid_score(
    stats_cache, images, num_images=None, batch_size=50, use_torch=False, verbose=False, parallel=False, *, net=None
):
    """Computes FID (arXiv:1706.08500, eq. 6) of images against a statistics file.

    stats_cache: a statistics file. The other arguments, and what is raised: see `get_inception_and_fid_score`.
    """
    how = num_images, batch_size, verbose, parallel, net
    scorer, reference = _scored('get_fid_score', ['fid'], images, *how, fid_cache=stats_cache)
    return scorer.fid(reference, use_torch)


def get_inception_score(
    images, splits=10, batch_size=32, use_torch=False, verbose=False, parallel=False, *, num_images=None, net=None
):
    """Computes IS (arXiv:1606.03498) of images over `splits` splits in generation order.

    use_torch: has no effect, because the sums are kept on the device of the network anyway. The other arguments: see
    `get_inception_and_fid_score`.

    Returns (mean, std), std with ddof 0. Raises ValueError for unusable images or fewer of them than splits.
    """
    how = num_images, batch_size, verbose, parallel, net
    scorer, _ = _scored('get_inception_score', ['is'], images, *how, splits=splits)
    return scorer.inception_score()


def _scored(name, metrics, images, num_images, batch_size, verbose, parallel, net, *, splits=10, fid_cache=None):
    """Returns a `Scorer` that has seen the images, and the statistics in fid_cache or None.

    name: that of the function, shown before the bar. The rest: see `get_inception_and_fid_score`. Raises ValueError if
    the number of images is not known.
    """
    if num_images is None and not hasattr(images, '__len__'):
        raise ValueError('num_images must be given when `images` has no length (e.g. a generator)')
    num_images = len(images) if num_images is None else num_images
    net = net or inception_net(device='cuda' if torch.cuda.is_available() else 'cpu')
    net = replace(net, trunk=torch.nn.DataParallel(net.trunk)) if parallel else net
    reference = load_statistics(fid_cache, net) if fid_cache else None
    scorer = Scorer(net, num_images, splits, metrics=metrics)
    for batch in batches(images, num_images, batch_size, verbose, name):
        scorer.update(batch)
    return scorer, reference
