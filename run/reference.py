"""Make and keep what scores need of a data set: its classifier, and its statistics and features under a feature net."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import dataset
import score
from run import distributed, hardware, hub, inputs, progress
from run.config import replace, size_text


def load_feature_net(config):
    """Return the network of --feature_net, in fp32 unless --precision=bf16. Trains a classifier if there is none.

    With the FID Inception at random weights and 300 images a side, bf16 shifted FID by -0.8% (34.65 to 34.36).
    """
    make = score.FEATURE_NETS[config.feature_net]
    how = {'precision': 'bf16' if config.precision == 'bf16' else 'fp32', 'device': hardware.device(config)}
    if config.feature_net == 'inception':
        return make(config.inception_weights or None, protocol=config.fid_protocol, **how)
    if config.feature_net == 'dinov2':
        return make(config.dinov2_weights or None, **how)
    # The first rank of each machine checks the file or trains it; its other ranks use the result.
    source = None if distributed.local_rank() else inputs.labelled_identity(config)
    path = f'{_stem(config)}.classifier.pt'
    return make(path, data=lambda: inputs.labelled(config), source=source, progress=progress.bar, **how)


def statistics_path(config):
    """Return --fid_cache, or stats/<dataset>.<split>.npz, with any other than the default protocol or network named."""
    if config.fid_cache:
        return config.fid_cache
    made = '' if _how(config) == 'pytorch' else f'.{_how(config)}'
    return f'{_stem(config)}.{config.split or "train"}{made}.npz'


def _how(config):
    return config.fid_protocol if config.feature_net == 'inception' else config.feature_net


def _stem(config):
    """Return stats/cifar10, stats/mnist32 or, since folders may share a name, stats/faces-64-<hash of the paths>."""
    if config.dataset in dataset.DATASETS:
        size = '' if dataset.DATASETS[config.dataset].size == config.img_size else size_text(config.img_size)
        colour = '' if config.image_channels == 'auto' else f'-{config.image_channels}channels'
        return os.path.join('stats', dataset.fitted(config.dataset + size + colour, config.fit, config.background))
    paths = [hub.resolved(path) for path in (config.dataset, config.test_dataset) if path]
    read = (*paths, config.image_channels, config.background)
    digest = hashlib.sha256(repr(read).encode(errors='surrogateescape')).hexdigest()
    name = os.path.basename(os.path.abspath(config.dataset)).removesuffix('.zip')
    size = dataset.fitted(size_text(config.img_size), config.fit, config.background)
    return os.path.join('stats', f'{name[:64]}-{size}-{digest[:6]}')


class Origin(NamedTuple):
    """The images that caches are made of. identify: a function that returns what identifies them.

    open: a function that returns (their name, what identifies them, their number, batches of them).
    """

    identify: Callable
    open: Callable


def _data_set(config):
    split = config.split or 'train'

    def opened():
        images = inputs.dataset(config, split)
        source = inputs.identity(config, split, images)  # taken before the images are read: they may change meanwhile
        batches = (x for x, _ in inputs.in_order(config, images))
        return inputs.name_of(config, split), source, len(images), batches

    return Origin(lambda: inputs.identity(config, split), opened)


def _npz(path):
    identify = partial(dataset.npz_identity, path)
    return Origin(identify, lambda: (path, identify(), *dataset.read_images(path)))


class Cache(NamedTuple):
    """A file made of an `Origin`. load: a function of (path, feature net). named: whether --fid_cache names it."""

    path: str
    load: Callable
    save: Callable
    named: bool


def _caches(config):
    """Return the `Origin` of what is compared with, and the caches of its statistics and of its features.

    If --fid_cache is an npz of images, these are the origin. Statistics that lie in it too, as in guided-diffusion's
    reference files, are taken as they are.
    """
    path, named = statistics_path(config), bool(config.fid_cache)
    origin, beside = _data_set(config), path
    if named and score.holds(path, 'arr_0'):
        origin, beside, named = _npz(path), f'{path.removesuffix(".npz")}.{_how(config)}.npz', False
        path = path if score.holds(path, 'mu', 'sigma') else beside
    statistics = Cache(path, score.load_statistics, score.save_statistics, named or path == config.fid_cache)
    return origin, statistics, _features_cache(beside, named)


def load_statistics(config, feature_net, checked=True):
    """Return the statistics to compare with, and with them all features that the metrics of --metrics need.

    They are at `statistics_path`, and the features in a file of their own beside it. Build, in one pass, what is
    missing, or stale and not named by --fid_cache. checked: whether they must have been made from the data set, if the
    file says what it was made from.

    Raises ScoreError if statistics are unusable, DataError if they cannot be built or compared.
    """
    needs, (origin, *caches) = score.needs_of(config.metrics), _caches(config)
    if 'features' not in needs:
        (statistics,) = _made(config, origin, feature_net, caches[:1], checked)
        return statistics
    path, beside = (cache.path for cache in caches)
    alone = caches[1].named and os.path.exists(path) and not os.path.exists(beside)
    if alone and not (checked and score.load_statistics(path).source):
        wanting = ','.join(score.that_need('features', config.metrics))
        raise score.ScoreError(
            f'{path} does not keep the features of its images, which --metrics={wanting} needs: leave --fid_cache out '
            'to have them computed from the data set'
        )
    statistics, features = _made(config, origin, feature_net, caches, checked)
    score.check_source(beside, features.source, statistics.source)
    more = {field: load_features(config, feature_net, split).rows for field, split in SPLITS.items() if field in needs}
    return dataclasses.replace(statistics, features=features.rows, **more)


SPLITS = {'training': 'train', 'held_out': 'test'}  # field of score.Statistics -> the split of which it holds features


def load_features(config, feature_net, split):
    """Return the `score.Features` of a split of the data set, whatever --fid_cache says. Build them if need be.

    Raises as `load_statistics`.
    """
    config = replace(config, split=split, fid_cache='')
    origin, _, cache = _caches(config)
    (features,) = _made(config, origin, feature_net, [cache])
    return features


def _features_cache(path, named):
    return Cache(f'{path.removesuffix(".npz")}.features.npz', score.load_features, score.save_features, named)


def _made(config, origin, feature_net, caches, checked=True):
    """Return what each cache holds. Build those that need it in one pass."""
    found = [_read(config, origin, cache, feature_net, checked) for cache in caches]
    stale = {cache: why for cache, why in zip(caches, found, strict=True) if isinstance(why, str)}
    if stale:
        _build(origin, feature_net, stale, spatial='mu_s' in score.needs_of(config.metrics))
        found = [cache.load(cache.path, feature_net) for cache in caches]
    return found


def _read(config, origin, cache, feature_net, checked):
    """Return what a cache holds, or the text that says why it must be built.

    Raises StaleError for one that --fid_cache names, and ScoreError for one that lacks spatial moments and must stay.
    """
    if not os.path.exists(cache.path):
        return 'is missing'
    try:
        found = cache.load(cache.path, feature_net)
        if (checked or not cache.named) and found.source and not distributed.local_rank():
            score.check_source(cache.path, found.source, origin.identify())
    except score.StaleError as error:
        if cache.named:
            raise
        return f'was {error.why}'
    wanting = score.that_need('mu_s', config.metrics)
    if wanting and cache.save is score.save_statistics and found.mu_s is None:
        if cache.named or not found.source:
            raise score.ScoreError(
                f'{cache.path} holds no mu_s and sigma_s, which --metrics={",".join(wanting)} needs: move it away, and '
                f'--stats --fid_protocol=tf --metrics={",".join(wanting)} builds it anew with them'
            )
        return 'has no mu_s and sigma_s'
    return found


def _build(origin, feature_net, stale, spatial):
    """Write caches in one pass over the images.

    stale: {cache: why it must be built}. spatial: whether statistics shall have the moments of spatial features.
    """
    for cache, why in stale.items():
        score.check_writable(cache.path, why)
    name, source, n, images = origin.open()
    wants_features, spatial = False, spatial and any(cache.save is score.save_statistics for cache in stale)
    for cache, why in stale.items():
        text = f'{cache.path} {why}: building it from the {n} images of {name}'
        if cache.save is score.save_features:
            wants_features, kept = True, min(n, score.KEPT)
            text += f', {4e-6 * kept * feature_net.dim:.1f} MB' + f' of {kept} of them' * (kept < n)
        logging.info(text)
    batches = progress.counted(((x, None) for x in images), 'statistics', n, 'image')
    built = score.build_statistics(feature_net, (x for x, _ in batches), n, features=wants_features, spatial=spatial)
    for cache in stale:
        cache.save(cache.path, dataclasses.replace(built, source=source))
