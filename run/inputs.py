"""Open the data set of a config, describe it, check it against a checkpoint, and give its batches."""

import logging
import os

import torch

import dataset as datasets
from dataset import loader
from run import build, distributed, hardware, hub, labels, progress
from run.config import replace, size_text


def dataset(config, split='train', like=None):
    """Return the images or points of --dataset, and log in one line what they are.

    Classes are numbered as in the checkpoint or, if `like` is given, as in that data set.

    Raises DataError as `dataset.load`, if there is no such split, and if it has classes or colour that `like` does
    not have.
    """
    name = name_of(config, split)
    data = _opened(config, split, 3 if like is not None and like.channels == 3 else config.image_channels, like)
    if like is not None and data.classes != like.classes:
        found, known = (datasets.listed(classes) for classes in (data.classes[like.num_classes :], like.classes))
        raise datasets.DataError(f'{name} has {found}, {config.dataset} has {known}: name its folders alike')
    if like is not None and data.channels != like.channels:
        raise datasets.DataError(f'{name} is in colour, {config.dataset} is grey: --channels=3 takes both as colour')
    logging.info('%s, %s: %s', name, split, data)
    if isinstance(data, datasets.Images) and data.lies_across():
        size = size_text(config.img_size)
        text = '%s: each of its images is %s, and --img_size=%s is HEIGHTxWIDTH: if the other order is meant, say %s'
        shape = 'higher than wide' if data.width > data.height else 'wider than high'
        logging.warning(text, name, shape, size, f'--img_size={size_text([data.width, data.height])}')
    return data


def name_of(config, split):
    """Return the name, path or address of a split. Raises DataError if there is no such split."""
    if split == 'train' or config.dataset in datasets.DATASETS:
        return config.dataset
    if not _has_test(config):
        raise datasets.DataError(f'{config.dataset} has no test split of its own: name one with --test_dataset')
    return config.test_dataset or config.dataset


def _place(name):
    """Return what `datasets.load` opens for a data set of this name, and the commit if it is on the Hub, else ''."""
    return hub.data_set(name) if name.startswith(hub.PREFIX) else (name, '')


def _opened(config, split, channels, like=None):
    name, _ = _place(name_of(config, split))
    data = datasets.load(name, config.data_dir, config.img_size, split, channels, config.background, config.fit)
    data.arrange(_class_names(config, data) if like is None else like.classes)
    return data


def _class_names(config, data):
    """Return the classes in the order of the config's checkpoint, or in that of the data if it has none."""
    if config.class_names is not None or config.dataset in datasets.DATASETS:
        return config.class_names or data.classes
    names = sorted(data.classes)  # the numbering of checkpoints that hold no names
    if names != data.classes:
        logging.warning(
            'the checkpoint holds no names of classes: they are numbered as when it was trained, by their letters: %s',
            ' '.join(names),
        )
    return names


def go_on_with_classes(config, data):
    """Number the classes of a data set as in the checkpoint that training resumes from; new classes come last.

    config: its `class_names` are the checkpoint's, and become the data's. Raises DataError if the network has too few
    labels for them.
    """
    data.arrange(_class_names(config, data))
    if data.num_classes > config.num_classes:
        check_classes(config, data)
    config.class_names = data.classes


def check_channels(config, data):
    """Raise DataError if the images of a data set have other channels than the network of a config."""
    if data.channels != config.channels:
        found, wanted = ('grey' if n == 1 else 'in colour' for n in (data.channels, config.channels))
        raise datasets.DataError(
            f'the images of the data set are {found}, those of the checkpoint {wanted}: '
            f'--channels={config.channels} takes them as {wanted}'
        )


def check_classes(config, data):
    """Raise DataError if the labels of a data set are not those that the network of a config was trained on."""
    known = config.num_classes if config.class_names is None else len(config.class_names)
    if config.num_classes and data.num_classes != known:
        raise datasets.DataError(
            f'the data set has {datasets.listed(data.classes[known:] or data.classes)}, the checkpoint was trained on '
            f'{datasets.listed(labels.names(config))}'
        )


def identity(config, split='train', data=None):
    """Return what identifies `dataset(config, split)`, a dict that fits in JSON. Caches made from it are checked by it.

    data: that data set, if it is already open. A named one is not opened, since that might download it: its name
    identifies it, with the size of a database that the user supplied. Raises DataError as `dataset`.
    """
    source = datasets.DATASETS.get(config.dataset)
    if source is None:
        made, name = (data or _opened(config, split, config.image_channels)).identity(), name_of(config, split)
        if commit := _place(name)[1]:  # where the cache lies does not matter
            name = datasets.fitted(name, config.fit, config.background)
            made |= {'from': name, 'split': split, 'files': commit}
        return made
    channels = source.channels if config.image_channels == 'auto' else int(config.image_channels)
    name = datasets.fitted(config.dataset, config.fit, config.background)
    made = {'from': name, 'split': split, 'img_size': config.img_size, 'channels': channels}
    if source.database and os.path.exists(path := source.database(config.data_dir, split)):
        made['bytes'] = os.path.getsize(path)
    return made


def fit(config, data):
    """Return the config with what the data decides: channels, classes with --cond, mean and std with --prior=data.

    Raises DataError if --net is not for such data, if --cond finds no labels or more than --num_classes, or if
    --labels names labels that the data does not have.
    """
    wants_points = build.is_points(config)
    if wants_points != isinstance(data, datasets.Points):
        fitting = ' or '.join(name for name, kind in build.NETWORKS.items() if kind.is_points != wants_points)
        raise datasets.DataError(f'--net={config.net} is not for {config.dataset}: use --net={fitting}')
    num_classes = (config.num_classes or data.num_classes) if config.cond else 0
    if config.cond and not 0 < data.num_classes <= num_classes:
        raise datasets.DataError(f'--cond with {num_classes} classes: {config.dataset} has {data.num_classes}')
    fitted = replace(
        config,
        channels=data.channels,
        num_classes=num_classes,
        class_names=data.classes if config.cond else [],
        moments=moments(config, data) if config.prior == 'data' else config.moments,
    )
    try:
        labels.chosen(fitted)  # checks the labels of the previews
    except ValueError as error:
        raise datasets.DataError(str(error)) from error
    return fitted


def moments(config, data):
    """Return the mean and standard deviation of 4,096 items of a data set, [2, ...], for --prior=data."""
    std, mean = torch.std_mean(sample_items(config, data, 4096), dim=0, correction=0)
    return torch.stack([mean, std]).cpu()


def batches(config, data, step):
    """Return endless training batches from `step` on, this rank's share of each, as `loader.batches` gives them."""
    how = (hardware.device(config), config.random_flip, config.num_workers, config.loader_timeout)
    share = distributed.share(config.batch_size)
    return loader.batches(data, config.batch_size, config.seed, step, *how, share, _watch)


def _watch(batches, data):
    return progress.counted(batches, 'decoding', len(data), data.unit.removesuffix('s'))


def in_order(config, data, batch_size=256, share=slice(None)):
    """Return every item of a data set, or of a share of it, once, as `loader.in_order` gives them."""
    return loader.in_order(data, config.num_workers, config.loader_timeout, batch_size, share)


def sample_items(config, data, n):
    """Return n images or points of a data set, or all if it has fewer, as the network sees them. --seed picks them."""
    chosen = next(loader.index_batches(len(data), min(n, len(data)), config.seed, 0))
    return data.prepare(loader.pick(data, chosen)).to(hardware.device(config))


def labelled(config):
    """Return (images, labels, test images, test labels) of --dataset. Without a test split, hold out every tenth.

    Raises DataError if it has no labels, or too few images to hold any out.
    """
    train = dataset(config)
    if not train.num_classes:
        raise datasets.DataError(f'{config.dataset} has no labels: --feature_net=classifier learns from labels')
    has_test = _has_test(config)
    if len(train) < 10 and not has_test:
        raise datasets.DataError(
            f'{config.dataset} has {len(train)} images: --feature_net=classifier holds out every tenth to test itself, '
            'and needs 10 or more, or a --test_dataset'
        )
    images, labels = loader.decode_all(train, config.num_workers, config.loader_timeout, _watch)
    if has_test:
        test = dataset(config, 'test', like=train)
        return images, labels, *loader.decode_all(test, config.num_workers, config.loader_timeout, _watch)
    held_out = torch.arange(len(images)) % 10 == 9
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


def labelled_identity(config):
    """Return what identifies the data of `labelled`, as `identity` does. Raises DataError as `dataset`."""
    return {**identity(config), 'test': identity(config, 'test') if _has_test(config) else None}


def _has_test(config):
    if config.dataset in datasets.DATASETS or config.test_dataset:
        return True
    return 'test' in datasets.splits(_place(config.dataset)[0])
