"""Gives both IS and FID, under the name that pytorch-ddpm has for it."""

from .features import standard_pass
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
    name = 'get_inception_and_fid_score'
    net, num_images, stream = standard_pass(name, images, num_images, batch_size, verbose, parallel, net)
    reference = load_statistics(fid_cache, net)
    scorer = Scorer(net, num_images, splits, metrics=('is', 'fid'))
    for batch in stream:
        scorer.update(batch)
    result = scorer.result(reference, use_torch)
    return (result['IS'], result['IS_std']), result['FID']
