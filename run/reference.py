"""Make and keep what scores need of a data set: its classifier, and its statistics and features under a feature net."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable
from typing import NamedTuple

import dataset
import score
from run import distributed, hardware, inputs, progress
from run.config import replace


def load_feature_net(config):
    """Return the network of --feature_net, in fp32 unless --precision=bf16. Trains a classifier if there is none.

    With the FID Inception at random weights and 300 images a side, bf16 shifted FID by -0.8% (34.65 to 34.36).
    """
    make = score.FEATURE_NETS[config.feature_net]
    how = {'precision': 'bf16' if config.precision == 'bf16' else 'fp32', 'device': hardware.device(config)}
    if config.feature_net == 'inception':
        return make(config.inception_weights or None, protocol=config.fid_protocol, **how)
    # The first rank of each machine checks the file or trains it; its other ranks use the result.
    source = None if distributed.local_rank() else inputs.labelled_identity(config)
    path = f'{_stem(config)}.classifier.pt'
    return make(path, data=lambda: inputs.labelled(config), source=source, progress=progress.bar, **how)


def statistics_path(config):
    """Return --fid_cache, or stats/<dataset>.<split>.npz, with any other than the default protocol or network named."""
    if config.fid_cache:
        return config.fid_cache
    usual = config.feature_net == 'inception' and config.fid_protocol == 'pytorch'
    made = '' if usual else f'.{config.fid_protocol if config.feature_net == "inception" else config.feature_net}'
    return f'{_stem(config)}.{config.split or "train"}{made}.npz'


def _stem(config):
    """Return stats/cifar10, stats/mnist32 or, since folders may share a name, stats/faces-64-<hash of the paths>."""
    if config.dataset in dataset.DATASETS:
        size = '' if dataset.DATASETS[config.dataset].size == config.img_size else str(config.img_size)
        colour = '' if config.image_channels == 'auto' else f'-{config.image_channels}channels'
        return os.path.join('stats', config.dataset + size + colour)
    paths = [os.path.realpath(path) for path in (config.dataset, config.test_dataset) if path]
    read = (*paths, config.image_channels, config.background)
    digest = hashlib.sha256(repr(read).encode(errors='surrogateescape')).hexdigest()
    name = os.path.basename(os.path.abspath(config.dataset)).removesuffix('.zip')
    return os.path.join('stats', f'{name[:64]}-{config.img_size}-{digest[:6]}')


class Cache(NamedTuple):
    """A file made of the data set of a config. load: a function of (path, feature net)."""

    path: str
    load: Callable
    save: Callable


def load_statistics(config, feature_net, checked=True):
    """Return the statistics at `statistics_path`, with all features that the metrics of --metrics need.

    The features are in a file of their own beside it. Build, in one pass, what is missing, or stale and not named by
    --fid_cache. checked: whether they must have been made from the data set, if the file says what it was made from.

    Raises ScoreError if statistics are unusable, DataError if they cannot be built or compared.
    """
    path, needs = statistics_path(config), score.needs_of(config.metrics)
    if 'features' not in needs:
        (statistics,) = _made(config, feature_net, [Cache(path, score.load_statistics, score.save_statistics)], checked)
        return statistics
    named = config.fid_cache and os.path.exists(path) and not os.path.exists(_beside(path))
    if named and not (checked and score.load_statistics(path).source):
        wanting = ','.join(score.that_need('features', config.metrics))
        raise score.ScoreError(
            f'{path} does not keep the features of its images, which --metrics={wanting} needs: leave --fid_cache out '
            'to have them computed from the data set'
        )
    caches = [Cache(path, score.load_statistics, score.save_statistics), _features_cache(path)]
    statistics, features = _made(config, feature_net, caches, checked)
    score.check_source(_beside(path), features.source, statistics.source)
    more = {field: load_features(config, feature_net, split).rows for field, split in SPLITS.items() if field in needs}
    return dataclasses.replace(statistics, features=features.rows, **more)


SPLITS = {'training': 'train', 'held_out': 'test'}  # field of score.Statistics -> the split of which it holds features


def load_features(config, feature_net, split):
    """Return the `score.Features` of a split of the data set, whatever --fid_cache says. Build them if need be.

    Raises as `load_statistics`.
    """
    config = replace(config, split=split, fid_cache='')
    (features,) = _made(config, feature_net, [_features_cache(statistics_path(config))])
    return features


def _beside(path):
    return f'{path.removesuffix(".npz")}.features.npz'


def _features_cache(path):
    return Cache(_beside(path), score.load_features, score.save_features)


def _made(config, feature_net, caches, checked=True):
    """Return what each cache holds. Build those that need it in one pass."""
    found = [_read(config, cache, feature_net, checked) for cache in caches]
    stale = {cache: why for cache, why in zip(caches, found, strict=True) if isinstance(why, str)}
    if stale:
        _build(config, feature_net, stale)
        found = [cache.load(cache.path, feature_net) for cache in caches]
    return found


def _read(config, cache, feature_net, checked):
    """Return what a cache holds, or the text that says why it must be built. Raises StaleError for --fid_cache."""
    if not os.path.exists(cache.path):
        return 'is missing'
    try:
        found = cache.load(cache.path, feature_net)
        if checked and found.source and not distributed.local_rank():
            score.check_source(cache.path, found.source, inputs.identity(config, config.split or 'train'))
        return found
    except score.StaleError as error:
        if config.fid_cache:
            raise
        return f'was {error.why}'


def _build(config, feature_net, stale):
    """Write caches in one pass over the data set. stale: {cache: why it must be built}."""
    for cache, why in stale.items():
        score.check_writable(cache.path, why)
    split = config.split or 'train'
    images = inputs.dataset(config, split)
    source = inputs.identity(config, split, images)  # taken before the images are read: they may change meanwhile
    n, wants_features = len(images), False
    for cache, why in stale.items():
        text = f'{cache.path} {why}: building it from the {n} images of {config.dataset}'
        if cache.save is score.save_features:
            wants_features, kept = True, min(n, score.KEPT)
            text += f', {4e-6 * kept * feature_net.dim:.1f} MB' + f' of {kept} of them' * (kept < n)
        logging.info(text)
    batches = progress.counted(inputs.in_order(config, images), 'statistics', n, 'image')
    built = score.build_statistics(feature_net, (x for x, _ in batches), n, features=wants_features)
    for cache in stale:
        cache.save(cache.path, dataclasses.replace(built, source=source))
