"""From a config, which holds the value of every flag, to the objects: the one place where they are made."""

import contextlib
import functools
import hashlib
import logging
import math
import os
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

import dataset as datasets
from dataset import loader
from diffusion import GaussianDiffusionSampler, GaussianDiffusionTrainer, Guidance, learns_variance
from draw.inference import Inference
from model import UNet
from networks.context_unet import ContextUNet
from networks.point_mlp import PointMLP
from process.losses import LOSSES
from run import distributed
from run.errors import UsageError, usage

# What decides the meaning of the weights: a checkpoint is used with these as it was trained. So is a learned variance.
NETWORK_KEYS = (
    'net', 'arch', 'ch', 'ch_mult', 'attn', 'head_dim', 'num_res_blocks', 'img_size', 'channels', 'num_classes',
    'T', 'beta_1', 'beta_T', 'schedule', 'mean_type',
)  # fmt: skip
# What configs of older checkpoints leave out, and what it was then.
UNSAID = {'head_dim': 0}
# What a checkpoint suggests and a flag given by the user overrides.
SAMPLER_KEYS = ('var_type', 'sample_steps', 'spacing', 'eta', 'clip_denoised', 'prior')
LABEL_KEYS = ('labels', 'guidance')
SCORE_KEYS = ('dataset', 'test_dataset', 'data_dir', 'image_channels', 'background', 'feature_net', 'fid_protocol')


class Network(NamedTuple):
    make: Callable  # config -> the network
    of_points: bool = False  # [B, channels] rather than images [B, channels, img_size, img_size]


def _unet(config):
    shape = (config.ch, config.ch_mult, config.attn, config.num_res_blocks, config.dropout)
    return UNet(config.T, *shape, arch=config.arch, head_dim=config.head_dim, **_of_images(config))


def _context_unet(config):
    return ContextUNet(config.T, config.ch, config.ch_mult, **_of_images(config))


def _of_images(config):
    return {
        'img_channels': config.channels,
        'out_channels': config.channels * (1 + learns_variance(config.var_type)),
        'img_size': config.img_size,
        'num_classes': config.num_classes,
    }


def _point_mlp(config):
    if learns_variance(config.var_type):
        raise ValueError(f'--var_type={config.var_type} is of images: --net=point_mlp predicts no variance')
    return PointMLP(config.T, config.ch, dim=config.channels, num_classes=config.num_classes)


NETWORKS = {'unet': Network(_unet), 'context_unet': Network(_context_unet), 'point_mlp': Network(_point_mlp, True)}


def network(config):
    """The network of a config. Raises ValueError as its class does."""
    return NETWORKS[config.net].make(config)


def of_points(config):
    """Whether a config is of points in place of images."""
    return NETWORKS[config.net].of_points


def shape(config):
    """Of one image, (channels, img_size, img_size), or one point, (channels,)."""
    return (config.channels,) if of_points(config) else (config.channels, config.img_size, config.img_size)


def trainer(config, net):
    """Algorithm 1 around `net`. Raises ValueError as `GaussianDiffusionTrainer` does, and for a bound of points."""
    if of_points(config) and LOSSES[config.loss].of_bound:
        raise ValueError(f'--loss={config.loss} is of 8-bit images: --net={config.net} is of points')
    return GaussianDiffusionTrainer(
        net,
        config.beta_1,
        config.beta_T,
        config.T,
        schedule=config.schedule,
        mean_type=config.mean_type,
        antithetic_t=config.antithetic_t,
        var_type=config.var_type,
        loss=config.loss,
        min_snr_gamma=config.min_snr_gamma,
        t_sampler=config.t_sampler,
    )


def sampler(config, net):
    """Algorithm 2 around `net`, guided by --guidance. Raises ValueError as `GaussianDiffusionSampler` does.

    net: made an `Inference` of --precision, unless it is one or, where nothing is predicted, None.
    """
    if net is not None and not isinstance(net, Inference):
        net = Inference(net, precision(config))
    if config.num_classes:
        net = Guidance(net, config.guidance, config.num_classes)
    return GaussianDiffusionSampler(
        net,
        config.beta_1,
        config.beta_T,
        config.T,
        config.img_size,
        config.mean_type,
        config.var_type,
        schedule=config.schedule,
        steps=config.sample_steps or None,
        spacing=config.spacing,
        eta=config.eta,
        clip_denoised=config.clip_denoised,
        data_moments=config.moments if config.prior == 'data' else None,
    )


def dataset(config, split='train', like=None):
    """The images or points of --dataset, of which it says in one line what they are.

    Classes are numbered as the checkpoint does, or as another data set, `like`, does.

    Raises DataError as `dataset.load`, where there is no such split, and where it has classes or colour that `like`
    has not.
    """
    name = _name(config, split)
    data = _opened(config, split, 3 if like is not None and like.channels == 3 else config.image_channels, like)
    if like is not None and data.classes != like.classes:
        found, known = (datasets.listed(classes) for classes in (data.classes[like.num_classes :], like.classes))
        raise datasets.DataError(f'{name} has {found}, {config.dataset} has {known}: name its folders alike')
    if like is not None and data.channels != like.channels:
        raise datasets.DataError(f'{name} is in colour, {config.dataset} is grey: --channels=3 takes both as colour')
    logging.info('%s, %s: %s', name, split, data)
    return data


def _name(config, split):
    if split == 'train' or config.dataset in datasets.DATASETS:
        return config.dataset
    if not config.test_dataset:
        raise datasets.DataError(f'{config.dataset} has no test split of its own: name one with --test_dataset')
    return config.test_dataset


def _opened(config, split, channels, like=None):
    name = _name(config, split)
    data = datasets.load(name, config.data_dir, config.img_size, split, channels, config.background)
    data.arrange(_class_names(config, data) if like is None else like.classes)
    return data


def _class_names(config, data):
    """The classes in the order that the checkpoint of a config has them, or that of the data where it has none."""
    if config.class_names is not None or config.dataset in datasets.DATASETS:
        return config.class_names or data.classes
    names = sorted(data.classes)  # as they were numbered before checkpoints held their names
    if names != data.classes:
        logging.warning(
            'the checkpoint holds no names of classes: they are numbered as when it was trained, by their letters: %s',
            ' '.join(names),
        )
    return names


def go_on_with_classes(config, data):
    """Number the classes of a data set as the checkpoint that training goes on from does, and those new to it last.

    config: its `class_names` are the checkpoint's, and become the data's. Raises DataError where the network has no
    room for them.
    """
    data.arrange(_class_names(config, data))
    if data.num_classes > config.num_classes:
        check_classes(config, data)
    config.class_names = data.classes


def check_channels(config, data):
    """Raise DataError where images of a data set have other channels than the network of a config."""
    if data.channels != config.channels:
        found, wanted = ('grey' if n == 1 else 'in colour' for n in (data.channels, config.channels))
        raise datasets.DataError(
            f'the images of the data set are {found}, those of the checkpoint {wanted}: '
            f'--channels={config.channels} takes them as {wanted}'
        )


def check_classes(config, data):
    """Raise DataError where the labels of a data set are not those that the network of a config was trained on."""
    known = config.num_classes if config.class_names is None else len(config.class_names)
    if config.num_classes and data.num_classes != known:
        raise datasets.DataError(
            f'the data set has {datasets.listed(data.classes[known:] or data.classes)}, the checkpoint was trained on '
            f'{datasets.listed(label_names(config))}'
        )


def identity(config, split='train', data=None):
    """What `dataset(config, split)` is, a dict as JSON can keep it, for caches made from it to be checked by.

    data: that data set, if it is open already. A named one is not opened, which might download it: its name tells, and
    the size of a database that the user brought. Raises DataError as `dataset`.
    """
    source = datasets.DATASETS.get(config.dataset)
    if source is None:
        return (data or _opened(config, split, config.image_channels)).identity()
    channels = source.channels if config.image_channels == 'auto' else int(config.image_channels)
    made = {'from': config.dataset, 'split': split, 'img_size': config.img_size, 'channels': channels}
    if source.database and os.path.exists(path := source.database(config.data_dir, split)):
        made['bytes'] = os.path.getsize(path)
    return made


def fit(config, data):
    """The config with what the data decides: channels, classes with --cond, mean and std with --prior=data.

    Raises DataError where --net is not for such data, --cond finds no labels or more than --num_classes, or --labels
    names others.
    """
    if of_points(config) != isinstance(data, datasets.Points):
        fitting = ' or '.join(name for name, kind in NETWORKS.items() if kind.of_points != of_points(config))
        raise datasets.DataError(f'--net={config.net} is not for {config.dataset}: use --net={fitting}')
    num_classes = (config.num_classes or data.num_classes) if config.cond else 0
    if config.cond and not 0 < data.num_classes <= num_classes:
        raise datasets.DataError(f'--cond with {num_classes} classes: {config.dataset} has {data.num_classes}')
    decided = {
        'channels': data.channels,
        'num_classes': num_classes,
        'class_names': data.classes if config.cond else [],
    }
    fitted = SimpleNamespace(**{**vars(config), **decided})
    if config.prior == 'data':
        fitted.moments = torch.stack(torch.std_mean(some(config, data, 4096), dim=0, correction=0)[::-1]).cpu()
    try:
        chosen_labels(fitted)  # of the previews
    except ValueError as error:
        raise datasets.DataError(str(error)) from error
    return fitted


def batches(config, data, step):
    """Endless training batches from `step` on, this rank's share of each, as `loader.batches` gives them."""
    how = (device(config), config.random_flip, config.num_workers, config.loader_timeout)
    share = distributed.share(config.batch_size)
    return loader.batches(data, config.batch_size, config.seed, step, *how, share)


def in_order(config, data, batch_size=256, share=slice(None)):
    """Every item of a data set, or a share of it, once, as `loader.in_order` gives them."""
    return loader.in_order(data, config.num_workers, config.loader_timeout, batch_size, share)


def some(config, data, n):
    """n images or points of a data set, or all of fewer, as the network sees them: those that --seed picks."""
    chosen = next(loader.index_batches(len(data), min(n, len(data)), config.seed, 0))
    return data.prepare(loader.pick(data, chosen)).to(device(config))


def labelled(config):
    """(images, labels, test images, test labels) of --dataset; every tenth is held out where it has no test split.

    Raises DataError where it has no labels.
    """
    train = dataset(config)
    if not train.num_classes:
        raise datasets.DataError(f'{config.dataset} has no labels: --feature_net=classifier learns from labels')
    images, labels = loader.decode_all(train, config.num_workers, config.loader_timeout)
    if _has_test(config):
        test = dataset(config, 'test', like=train)
        return images, labels, *loader.decode_all(test, config.num_workers, config.loader_timeout)
    held_out = torch.arange(len(images)) % 10 == 9
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


def labelled_identity(config):
    """What `labelled` gives, as `identity` says it. Raises DataError as `dataset`."""
    return {**identity(config), 'test': identity(config, 'test') if _has_test(config) else None}


def _has_test(config):
    return config.dataset in datasets.DATASETS or bool(config.test_dataset)


def is_native(config):
    """Whether the images of a named data set are all of --img_size to begin with."""
    source = datasets.DATASETS.get(config.dataset)
    return source is not None and source.size == config.img_size


def device(config):
    """The torch device of --device: cpu, or a kind of accelerator, with an index or without; auto is what there is.

    Raises ValueError, which says what there is, for one that this machine does not have.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    if config.device == 'auto':
        return torch.device(found.type if found else 'cpu')
    try:
        chosen = torch.device(config.device)
    except RuntimeError:
        chosen = None
    if chosen and chosen.type == 'cpu':
        return torch.device('cpu')
    count = torch.accelerator.device_count() if found else 0
    if chosen and found and chosen.type == found.type and (chosen.index or 0) < count:
        return chosen
    there = ['auto', 'cpu', *([found.type, *(f'{found.type}:{i}' for i in range(count))] if found else [])]
    known = f'this machine has no {chosen.type.upper()} device of that name' if chosen else 'no device of torch'
    raise ValueError(f'--device={config.device}: {known}; here it is one of {", ".join(there)}')


# Kinds of device -> whether the one at hand computes in bf16. Others have to be asked to, by --precision=bf16.
NATIVE_BF16 = {
    'cuda': lambda: torch.cuda.is_bf16_supported(False),
    'cpu': lambda: torch.cpu._is_avx512_bf16_supported(),
}


def precision(config):
    """The dtype of --precision: bfloat16 where asked for or, with auto, where the hardware computes in it."""
    native = computes_bf16(device(config))
    return torch.bfloat16 if config.precision == 'bf16' or (config.precision == 'auto' and native) else torch.float32


def computes_bf16(device):
    """Whether a device computes in bfloat16 itself, rather than by way of float32, which takes many times as long."""
    return NATIVE_BF16.get(device.type, lambda: False)()


def hardware(config):
    """What a run computes on and in, for its log: 'cuda (NVIDIA H100), bfloat16'."""
    where, dtype = device(config), str(precision(config)).removeprefix('torch.')
    return f'{where} ({torch.cuda.get_device_name(where)}), {dtype}' if where.type == 'cuda' else f'{where}, {dtype}'


def autocast(config):
    """The context of a training step for --precision, with weights in float32."""
    if precision(config) == torch.float32:  # torch.autocast is not there for every kind of device
        return contextlib.nullcontext()
    return torch.autocast(device(config).type, torch.bfloat16)


COMPILING = 'compiling: a minute or two before the first step'
# What an uncompiled network comes to, roughly, in floating-point operations a second, and how many seconds of it must
# lie ahead for the minute or two of compiling to be won back. Other kinds of device compile with --compile=on alone.
RATE = {'cuda': 2e14, 'cpu': 2e11}
COMPILE_SECONDS = 600


def compiles(config, images, backward=False):
    """Whether to compile for the network to see so many images: --compile or, with auto, if it is long enough a run.

    With auto, where torch.compile does not work, the answer is no, with a warning.
    """
    kind = device(config).type
    if config.compile != 'auto' or kind not in RATE:
        return config.compile == 'on'
    seconds = flops(config) * (3 if backward else 1) * images / RATE[kind]
    return seconds > COMPILE_SECONDS and not _warned(compile_failure(kind))


@functools.cache
def compile_failure(kind):
    """Why torch.compile does not work on this kind of device, in one line; '' if it does. Tried once, in seconds."""
    try:
        torch.compile(lambda x: 2 * x + 1, fullgraph=True)(torch.zeros(8, device=kind))
    except Exception as error:  # whatever inductor, triton or a missing compiler lead to
        return str(getattr(error, 'inner_exception', error)).strip().partition('\n')[0] or type(error).__name__
    return ''


@functools.cache
def _warned(failure):
    if failure:
        logging.warning('torch.compile does not work here (%s): going on without it, slower. %s', failure, TO_COMPILE)
    return bool(failure)


TO_COMPILE = "It needs a C++ compiler, such as g++, and Python's headers"


def flops(config):
    """Floating-point operations of one network call on one image, two a multiplication and addition."""
    with torch.device('meta'), FlopCounterMode(display=False) as counter:
        network(config)(torch.zeros(1, *shape(config)), torch.zeros(1, dtype=torch.int64))
    return counter.get_total_flops()


@usage()
def check(config, training=False, drawing=True):
    """Raise UsageError, naming what is wrong, if a config describes no device, or no trainer, network or sampler.

    training, drawing: whether a trainer is wanted, and a network and sampler. Warns of a precision that is slow here.
    """
    for key, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f'{key} must be finite, not {value}')
    _check_device(config)
    if not drawing:
        return
    for key, limit in (('T', 10**6), ('num_res_blocks', 100)):  # a damaged checkpoint may say anything
        if not 1 <= getattr(config, key) <= limit:
            raise ValueError(f'{key} must be between 1 and {limit}, not {getattr(config, key)}')
    with torch.device('meta'):
        network(config)
    if training:
        _check_batch(config)
        trainer(config, None)
    sampler(config, None)


def _check_device(config):
    where = device(config)
    if config.precision == 'bf16' and not torch.amp.is_autocast_available(where.type):
        raise ValueError(f'--precision=bf16: torch has no autocast for {where.type}; use --precision=fp32')
    if config.precision == 'bf16' and not computes_bf16(where):
        warnings.warn(  # once, though this is called again with the config of a checkpoint
            f'--precision=bf16: this {where.type.upper()} does not compute in bf16 itself and may take ten times as '
            'long as in fp32; without the flag the faster one is taken',
            stacklevel=1,
        )
    if config.compile == 'on' and (failure := compile_failure(where.type)):
        raise ValueError(f'--compile=on: torch.compile does not work here ({failure}). {TO_COMPILE}; or --compile=off')


def _check_batch(config):
    if config.batch_size < distributed.world():
        raise ValueError(f'batch_size {config.batch_size} gives nothing to some of {distributed.world()} processes')
    if config.batch_size % config.grad_accum:
        raise ValueError(f'grad_accum {config.grad_accum} must divide batch_size {config.batch_size}')


def chosen_labels(config):
    """The labels of --labels, a sequence of int; None for an unconditional network.

    They are names of classes or, unless a class is called by a number, the numbers of classes, from 0.

    Raises ValueError for labels that the network does not have.
    """
    if not config.num_classes:
        if config.labels != 'all' or config.guidance != 1:
            raise ValueError('--labels and --guidance need a checkpoint trained with --cond')
        return None
    if config.labels == 'all':
        return range(config.num_classes)
    names = config.class_names or []
    numbers = {} if any(name.isdecimal() for name in names) else {str(y): y for y in range(config.num_classes)}
    known = numbers | {name: y for y, name in enumerate(names)}
    words = [config.labels] if config.labels in known else [word.strip() for word in config.labels.split(',')]
    if not known.keys() >= set(words):
        what = f'classes are {datasets.shown(names)}' if names else f'labels are 0 to {config.num_classes - 1}'
        raise ValueError(f'--labels={config.labels}: the {what}{", by name or number" if names and numbers else ""}')
    return [known[word] for word in words]


def label_names(config):
    """What the labels of the config's network are called: by the names of its classes, else by their numbers."""
    names = config.class_names or []
    return [*names, *map(str, range(len(names), config.num_classes))]


def labels(config, indices):
    """The label of each image to draw, int64 [B]: `chosen_labels` in turn; None for an unconditional network."""
    chosen = chosen_labels(config)
    return None if chosen is None else torch.tensor([chosen[i % len(chosen)] for i in indices], device=device(config))


def _complete(stored):
    """A checkpoint's config with what older ones leave out; pytorch-ddpm's have none, and the flags speak."""
    return {**UNSAID, **stored} if 'T' in stored else stored


def disagreements(config, stored, origins=None):
    """One phrase for each of NETWORK_KEYS, and a learned variance, in which a config differs from a checkpoint's.

    origins: {name: the flagfile that says it}, to name in the phrase.
    """
    files = {key: f' in {path}' for key, path in (origins or {}).items() if path}
    stored = _complete(stored)
    learned = any(learns_variance(side.get('var_type', 'fixedlarge')) for side in (vars(config), stored))
    return [
        f'--{key}={getattr(config, key)}{files.get(key, "")} (trained with {stored[key]})'
        for key in (*NETWORK_KEYS, *(['var_type'] if learned else []))
        if key in stored and stored[key] != getattr(config, key)
    ]


@usage()
def adopt(config, stored, given):
    """The config to use a checkpoint with: its network, and its sampler but for the flags in `given`.

    config: of the flags. stored: dict of the checkpoint's. given: names of the flags that the user gave; as a dict,
    {name: the flagfile it comes from, or ''}.

    Raises UsageError if a given flag contradicts the checkpoint's network.
    """
    stored = _complete(stored)
    asked = SimpleNamespace(**{key: value for key, value in vars(config).items() if key in given})
    if getattr(asked, 'image_channels', 'auto') != 'auto':
        asked.channels = int(asked.image_channels)
    origins = given if isinstance(given, dict) else {}
    wrong = disagreements(SimpleNamespace(**{**stored, **vars(asked)}), stored, origins)
    if wrong:
        remedy = 'leave the flag out'
        if any(origins.values()):
            remedy += ', or the flagfile: --logdir alone is enough'
        raise UsageError(f'the checkpoint is of another network than {", ".join(wrong)}: {remedy}')
    adopted = {key: stored[key] for key in (*NETWORK_KEYS, 'moments') if key in stored}
    adopted['class_names'] = stored.get('class_names') if stored.get('num_classes') else []
    suggested = (*SAMPLER_KEYS, *SCORE_KEYS, 'dropout')
    adopted |= {key: stored[key] for key in suggested if key in stored and key not in given}
    return SimpleNamespace(**{**vars(config), **adopted})


def derive_seed(*key):
    """A 63-bit seed that is a function of `key` alone, such as ('step', seed, rank, step)."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), 'big') >> 1
