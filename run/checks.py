"""Check a config before anything is made: its device, network, trainer and sampler."""

import math
import warnings

import torch

from run import build, compiling, distributed, hardware, trackers
from run.config import in_few_steps
from run.errors import usage
from score import METRICS, ranking, that_need


@usage()
def check(config, training=False, drawing=True):
    """Raise UsageError, saying what is wrong, if a config's device, network, trainer or sampler cannot be made.

    drawing: whether to check the network and sampler; training: and the trainer. Warns if the precision is slow here.
    """
    for key, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f'{key} must be finite, not {value}')
    if unknown := set(config.metrics) - set(METRICS):  # a checkpoint may name one that this program does not have
        raise ValueError(f'there is no metric {unknown.pop()}: --metrics takes some of {" ".join(METRICS)}')
    if training or config.eval or config.nll or config.figure:
        trackers.check(config.track)
    scores = config.eval or config.stats or (training and config.eval_step)
    spatial = that_need('mu_s', config.metrics) if scores else []
    if spatial and (config.feature_net, config.fid_protocol) != ('inception', 'tf'):
        raise ValueError(f'{spatial[0]} of --metrics is defined for --feature_net=inception --fid_protocol=tf alone')
    _check_device(config)
    if config.guide_by and (training or config.export):
        raise ValueError('--guide_by is for drawing: leave it out of the command that trains or exports')
    if not drawing:
        return
    for key, limit in (('T', 10**6), ('num_res_blocks', 100)):  # a damaged checkpoint may have any value
        if not 1 <= getattr(config, key) <= limit:
            raise ValueError(f'{key} must be between 1 and {limit}, not {getattr(config, key)}')
    with torch.device('meta'):
        build.network(config)
    if training:
        _check_batch(config)
        if config.keep_best:
            _check_keep_best(config)
        build.trainer(config, None)
        for steps in (config.preview_steps, config.eval_sample_steps):
            build.sampler(in_few_steps(config, steps), None)
    build.sampler(config, None)


def _check_device(config):
    where = hardware.device(config)
    if config.precision == 'bf16' and not torch.amp.is_autocast_available(where.type):
        raise ValueError(f'--precision=bf16: torch has no autocast for {where.type}; use --precision=fp32')
    if config.precision == 'bf16' and not hardware.computes_bf16(where):
        warnings.warn(  # shown once, though this runs again with a checkpoint's config
            f'--precision=bf16: this {where.type.upper()} does not compute in bf16 itself and may take ten times as '
            'long as in fp32; without the flag the faster one is taken',
            stacklevel=1,
        )
    if config.compile == 'on' and (failure := compiling.compile_failure(where.type)):
        raise ValueError(
            f'--compile=on: torch.compile does not work here ({failure}). {compiling.TO_COMPILE}; or --compile=off'
        )


def _check_batch(config):
    if config.batch_size < distributed.world():
        raise ValueError(f'batch_size {config.batch_size} gives nothing to some of {distributed.world()} processes')
    if config.batch_size % config.grad_accum:
        raise ValueError(f'grad_accum {config.grad_accum} must divide batch_size {config.batch_size}')


def _check_keep_best(config):
    figure, known = config.keep_best, ' '.join(ranking(METRICS))
    if build.is_points(config):
        raise ValueError(f'--keep_best={figure}: points are scored by none of {known}')
    if figure not in ranking(METRICS):
        raise ValueError(f'--keep_best={figure} ranks no checkpoints: take one of {known}')
    if figure not in ranking(config.metrics):
        metric = next(name for name in METRICS if figure in METRICS[name].best)
        raise ValueError(f'--keep_best={figure} is not computed: add --metrics={",".join([*config.metrics, metric])}')
    if not config.eval_step:
        raise ValueError(f'--keep_best={figure} needs --eval_step, the training steps between evaluations')
