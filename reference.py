"""What images are compared with: statistics of a data set, and the network whose features they are of.

Both are kept under stats/, built if missing, and built anew if what they were made from has changed since.
"""

import dataclasses
import hashlib
import logging
import os

import score
from dataset import DATASETS, DataError
from run import build, distributed, progress


def load_feature_net(config):
    """The network of --feature_net, in fp32 unless --precision=bf16; a classifier is trained if need be.

    On the FID Inception with random weights, 300 images a side, bf16 shifted FID by -0.8% (34.65 to 34.36).
    """
    weights, source = config.inception_weights or None, None
    if config.feature_net == 'classifier':
        weights = f'{_stem(config)}.classifier.pt'
        # Other ranks take what the first of their machine leaves.
        source = None if distributed.local_rank() else build.labelled_identity(config)
    return score.FEATURE_NETS[config.feature_net](
        weights,
        protocol=config.fid_protocol,
        precision='bf16' if config.precision == 'bf16' else 'fp32',
        device=build.device(config),
        data=lambda: build.labelled(config),
        source=source,
        progress=progress.bar,
    )


def path_of(config):
    """--fid_cache, or stats/<dataset>.<split>.npz, with the protocol or feature net in its name where not the usual."""
    if config.fid_cache:
        return config.fid_cache
    usual = config.feature_net == 'inception' and config.fid_protocol == 'pytorch'
    made = '' if usual else f'.{config.fid_protocol if config.feature_net == "inception" else config.feature_net}'
    return f'{_stem(config)}.{_split(config)}{made}.npz'


def _split(config):
    return config.split or 'train'


def _stem(config):
    """stats/cifar10, stats/mnist32 or, since folders of one name are many, stats/faces-64-<hash of their paths>."""
    if config.dataset in DATASETS:
        size = '' if build.is_native(config) else str(config.img_size)
        colour = '' if config.image_channels == 'auto' else f'-{config.image_channels}channels'
        return os.path.join('stats', config.dataset + size + colour)
    paths = [os.path.realpath(path) for path in (config.dataset, config.test_dataset) if path]
    read = (*paths, config.image_channels, config.background)
    digest = hashlib.sha256(repr(read).encode(errors='surrogateescape')).hexdigest()
    name = os.path.basename(os.path.abspath(config.dataset)).removesuffix('.zip')
    return os.path.join('stats', f'{name[:64]}-{config.img_size}-{digest[:6]}')


def load(config, feature_net, checked=True):
    """The statistics at `path_of`, built from the data set if missing or, unless --fid_cache names them, of another.

    checked: whether to compare what they were made from with the data set, of which a file of others says nothing.

    Raises ScoreError for unusable statistics, DataError if these cannot be built or compared.
    """
    path, split = path_of(config), _split(config)
    why = 'is missing'
    if os.path.exists(path):
        try:
            statistics = score.load_statistics(path, feature_net)
            if checked and statistics.source and not distributed.local_rank():
                score.check_source(path, statistics.source, build.identity(config, split))
            return statistics
        except score.StaleError as error:
            if config.fid_cache:
                raise
            why = f'was {error.why}'
    score.check_writable(path, why)
    images = build.dataset(config, split)
    source = build.identity(config, split, images)  # before the images are read, lest they change meanwhile
    logging.info('%s %s: building it from the %d images of %s', path, why, len(images), config.dataset)
    batches = (x for x, _ in build.in_order(config, images))
    built = score.build_statistics(feature_net, batches, len(images), progress.bar)
    score.save_statistics(path, dataclasses.replace(built, source=source))
    return score.load_statistics(path, feature_net)


def build_reference(config):
    """--stats: build the statistics of the data set if need be, and print what is there. Raises as `load`."""
    if build.of_points(config):
        raise DataError(f'{config.dataset} is of points, which are scored without --stats: --eval is enough')
    statistics = load(config, load_feature_net(config))
    print(f'{path_of(config)}: {statistics.made or "mu and sigma alone"}')
