"""From a config, which holds the value of every flag, to the objects: the one place where they are made."""

import hashlib
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

import dataset as datasets
import distributed
import loader
from diffusion import GaussianDiffusionSampler, GaussianDiffusionTrainer, Guidance, learns_variance
from errors import UsageError, usage
from inference import Inference
from model import ContextUNet, PointMLP, UNet
from objective import LOSSES

# What decides the meaning of the weights: a checkpoint is used with these as it was trained. So is a learned variance.
NETWORK_KEYS = (
    'net', 'arch', 'ch', 'ch_mult', 'attn', 'num_res_blocks', 'img_size', 'channels', 'num_classes',
    'T', 'beta_1', 'beta_T', 'schedule', 'mean_type',
)  # fmt: skip
# What a checkpoint suggests and a flag given by the user overrides.
SAMPLER_KEYS = ('var_type', 'sample_steps', 'spacing', 'eta', 'clip_denoised', 'prior')
LABEL_KEYS = ('labels', 'guidance')
SCORE_KEYS = ('dataset', 'test_dataset', 'data_dir', 'feature_net', 'fid_protocol')


class Network(NamedTuple):
    make: Callable  # config -> the network
    of_points: bool = False  # [B, channels] rather than images [B, channels, img_size, img_size]


def _unet(config):
    shape = (config.ch, config.ch_mult, config.attn, config.num_res_blocks, config.dropout)
    return UNet(config.T, *shape, arch=config.arch, **_of_images(config))


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


def dataset(config, split='train'):
    """The images or points of --dataset. Raises DataError as `dataset.load`, or where there is no such split."""
    name = config.dataset
    if split == 'test' and name not in datasets.DATASETS:
        name = config.test_dataset
        if not name:
            raise datasets.DataError(f'{config.dataset} has no test split of its own: name one with --test_dataset')
    return datasets.load(name, config.data_dir, config.img_size, split)


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
    fitted = SimpleNamespace(**{**vars(config), 'channels': data.channels, 'num_classes': num_classes})
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
    if config.dataset in datasets.DATASETS or config.test_dataset:
        return images, labels, *loader.decode_all(dataset(config, 'test'), config.num_workers, config.loader_timeout)
    held_out = torch.arange(len(images)) % 10 == 9
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


def is_native(config):
    """Whether the images of a named data set are all of --img_size to begin with."""
    source = datasets.DATASETS.get(config.dataset)
    return source is not None and source.size == config.img_size


def device(config):
    """The torch device of --device; auto is CUDA where there is one. Raises ValueError where cuda is absent."""
    if config.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device=cuda: this machine has no CUDA device; use --device=cpu')
    return torch.device('cuda' if config.device != 'cpu' and torch.cuda.is_available() else 'cpu')


def precision(config):
    """The dtype of --precision: bfloat16 where asked for or, with auto, where the hardware computes in it."""
    on_gpu = device(config).type == 'cuda'
    native = torch.cuda.is_bf16_supported(False) if on_gpu else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if config.precision == 'bf16' or (config.precision == 'auto' and native) else torch.float32


def hardware(config):
    """What a run computes on and in, for its log: 'cuda (NVIDIA H100), bfloat16'."""
    where, dtype = device(config), str(precision(config)).removeprefix('torch.')
    return f'{where} ({torch.cuda.get_device_name(where)}), {dtype}' if where.type == 'cuda' else f'{where}, {dtype}'


def autocast(config):
    """The context of a training step for --precision, with weights in float32."""
    return torch.autocast(device(config).type, torch.bfloat16, enabled=precision(config) == torch.bfloat16)


# What an uncompiled network comes to, roughly, in floating-point operations a second, and how many seconds of it must
# lie ahead for the minute or two of compiling to be won back.
COMPILING = 'compiling: a minute or two before the first step'
RATE = {'cuda': 2e14, 'cpu': 2e11}
COMPILE_SECONDS = 600


def compiles(config, images, backward=False):
    """Whether to compile for the network to see so many images: --compile or, with auto, if it is long enough a run."""
    if config.compile != 'auto':
        return config.compile == 'on'
    seconds = flops(config) * (3 if backward else 1) * images / RATE[device(config).type]
    return seconds > COMPILE_SECONDS


def flops(config):
    """Floating-point operations of one network call on one image, two a multiplication and addition."""
    with torch.device('meta'), FlopCounterMode(display=False) as counter:
        network(config)(torch.zeros(1, *shape(config)), torch.zeros(1, dtype=torch.int64))
    return counter.get_total_flops()


@usage()
def check(config, training=False):
    """Raise UsageError, naming what is wrong, where a config describes no network, sampler, device or trainer."""
    for key, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f'{key} must be finite, not {value}')
    if config.batch_size < distributed.world():
        raise ValueError(f'batch_size {config.batch_size} gives nothing to some of {distributed.world()} processes')
    for key, limit in (('T', 10**6), ('num_res_blocks', 100)):  # a damaged checkpoint may say anything
        if not 1 <= getattr(config, key) <= limit:
            raise ValueError(f'{key} must be between 1 and {limit}, not {getattr(config, key)}')
    if config.batch_size % config.grad_accum:
        raise ValueError(f'grad_accum {config.grad_accum} must divide batch_size {config.batch_size}')
    with torch.device('meta'):
        network(config)
    if training:
        trainer(config, None)
    sampler(config, None)
    device(config)


def chosen_labels(config):
    """The labels of --labels, a sequence of int; None for an unconditional network.

    Raises ValueError for labels that the network does not have.
    """
    if not config.num_classes:
        if config.labels != 'all' or config.guidance != 1:
            raise ValueError('--labels and --guidance need a checkpoint trained with --cond')
        return None
    try:
        chosen = range(config.num_classes) if config.labels == 'all' else [int(y) for y in config.labels.split(',')]
    except ValueError:
        raise ValueError(f'--labels must be all or integers such as 3 or 0,1,2, not {config.labels}') from None
    if not all(0 <= y < config.num_classes for y in chosen):
        raise ValueError(f'--labels={config.labels}: the labels are 0 to {config.num_classes - 1}')
    return chosen


def labels(config, indices):
    """The label of each image to draw, int64 [B]: `chosen_labels` in turn; None for an unconditional network."""
    chosen = chosen_labels(config)
    return None if chosen is None else torch.tensor([chosen[i % len(chosen)] for i in indices], device=device(config))


def disagreements(config, stored, origins=None):
    """One phrase for each of NETWORK_KEYS, and a learned variance, in which a config differs from a checkpoint's.

    origins: {name: the flagfile that says it}, to name in the phrase.
    """
    files = {key: f' in {path}' for key, path in (origins or {}).items() if path}
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
    asked = SimpleNamespace(**{key: value for key, value in vars(config).items() if key in given})
    origins = given if isinstance(given, dict) else {}
    wrong = disagreements(SimpleNamespace(**{**stored, **vars(asked)}), stored, origins)
    if wrong:
        remedy = 'leave the flag out'
        if any(origins.values()):
            remedy += ', or the flagfile: --logdir alone is enough'
        raise UsageError(f'the checkpoint is of another network than {", ".join(wrong)}: {remedy}')
    adopted = {key: stored[key] for key in (*NETWORK_KEYS, 'moments') if key in stored}
    suggested = (*SAMPLER_KEYS, *SCORE_KEYS, 'dropout')
    adopted |= {key: stored[key] for key in suggested if key in stored and key not in given}
    return SimpleNamespace(**{**vars(config), **adopted})


def derive_seed(*key):
    """A 63-bit seed that is a function of `key` alone, such as ('step', seed, rank, step)."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), 'big') >> 1
