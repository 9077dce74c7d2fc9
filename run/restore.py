"""Restore the config, network and step of a checkpoint."""

import logging
import os

import torch

from run import build, checkpoint, checks, hardware, labels
from run.config import adopt
from run.errors import UsageError, usage


def run_folder(config):
    """Return the folder of the checkpoint."""
    if os.path.isdir(config.ckpt):
        return config.ckpt
    return os.path.dirname(config.ckpt) if config.ckpt else config.logdir


def restore(config, given):
    """Return the config that a checkpoint was trained with (see `adopt`), its network in eval mode, and its step.

    Raises FileNotFoundError or CheckpointError if it cannot be read, UsageError if given flags contradict it.
    """
    path = config.ckpt or config.logdir
    if not config.ckpt or os.path.isdir(path):
        path = os.path.join(path, 'ckpt.pt')
    beside = [os.path.join(os.path.dirname(path), name) for name in ('model_index.json', 'config.json')]
    if path.endswith('.safetensors') or (any(map(os.path.exists, beside)) and not os.path.exists(path)):
        raise FileNotFoundError(f'{config.ckpt or path} is no checkpoint of this program: {_import_it(config)}')
    state = checkpoint.load(path)
    kind = f'{config.weights}_model'
    if kind not in state:
        raise checkpoint.CheckpointError(
            f'{path} holds no {kind}, its first keys are {", ".join(map(str, list(state)[:3]))}: '
            f'if it is a state dict, {_import_it(config)}'
        )
    with checkpoint.refusing_other_forms(path):
        return _restored(config, given, path, checkpoint.unwrapped(state[kind]), state)


def _import_it(config):
    return f'import it with --import_ckpt={config.ckpt or config.logdir} --logdir=NEW'


def _restored(config, given, path, weights, state):
    stored = state.get('config')
    if stored is None:  # pytorch-ddpm's: the flags describe all but the channels, for which it had no flag
        stored = {'channels': weights['head.weight'].shape[1]} if 'head.weight' in weights else {}
    config = adopt(config, stored, given)
    checks.check(config)
    with usage():
        labels.chosen(config)
    if config.prior == 'data' and config.moments is None:
        raise UsageError('--prior=data needs a checkpoint trained with it')
    with torch.device('meta'):  # check shapes first: a damaged file may ask for any amount of memory
        checkpoint.check_weights(build.network(config).state_dict(), weights, path)
    net = build.network(config)
    net.load_state_dict(weights)
    _hint(config, stored, state.get('step'))
    return config, net.eval().to(hardware.device(config)), state.get('step')


def _hint(config, stored, step):
    """Warn of weights that will draw poor images. stored: the config of the checkpoint."""
    left = stored.get('ema_decay', config.ema_decay) ** (step or 0)  # the initial weights' part of the average
    if config.weights == 'ema' and step and left > 0.1 and not stored.get('import_ckpt'):
        logging.warning(
            'the averaged weights of step %d are still %.0f%% those that the run began with: --weights=net may draw '
            'better until it has trained for longer, or with a lower --ema_decay',
            step,
            100 * left,
        )
    always_labelled = stored.get('p_uncond', 0.1) == 0 and stored.get('p_uncond_schedule', 'constant') == 'constant'
    if config.num_classes and always_labelled and (config.guidance != 1 or config.figure == 'guidance'):
        logging.warning(
            'guidance needs a network trained without labels too, and this one has not been (--p_uncond=0): what it '
            'draws at --guidance other than 1 means nothing'
        )
