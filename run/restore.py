"""Restore the config, network and step of a checkpoint."""

import logging
import os

import torch

from dataset import shown
from run import build, checkpoint, checks, hardware, labels
from run.config import adopt, disagreements, keys, replace
from run.errors import UsageError, usage


def run_folder(config):
    """Return the folder of the checkpoint."""
    if os.path.isdir(config.ckpt):
        return config.ckpt
    return os.path.dirname(config.ckpt) or os.curdir if config.ckpt else config.logdir


def restore(config, given):
    """Return the config that a checkpoint was trained with (see `adopt`), its network in eval mode, and its step.

    With --guide_by the network is `build.Guided`. Raises FileNotFoundError or CheckpointError if a checkpoint cannot be
    read, UsageError if given flags contradict it, or if the one of --guide_by is of another process or other images.
    """
    path, state, weights = _read(config.ckpt or config.logdir, config.weights, is_folder=not config.ckpt)
    with checkpoint.refusing_other_forms(path):
        stored = _stored(state, weights)
        config = adopt(config, stored, given)
        checks.check(config)
        with usage():
            labels.chosen(config)
        if config.prior == 'data' and config.moments is None:
            raise UsageError('--prior=data needs a checkpoint trained with it')
        net = _network(config, weights, path)
    _hint(config, stored, state.get('step'))
    if config.guide_by:
        if 'guidance' not in given and config.figure != 'guidance':
            raise UsageError('--guide_by needs a --guidance other than 1, such as --guidance=2')
        net = build.Guided(net, _guide(config))
    return config, net.eval().to(hardware.device(config)), state.get('step')


def _read(where, kind, is_folder=False):
    """Return the path of a checkpoint, its content, and the weights of this kind. where: the file or its folder."""
    path = os.path.join(where, 'ckpt.pt') if is_folder or os.path.isdir(where) else where
    beside = [os.path.join(os.path.dirname(path), name) for name in ('model_index.json', 'config.json')]
    if path.endswith('.safetensors') or (any(map(os.path.exists, beside)) and not os.path.exists(path)):
        raise FileNotFoundError(f'{where} is no checkpoint of this program: {_import_it(where)}')
    state = checkpoint.load(path)
    key = f'{kind}_model'
    if key not in state:
        raise checkpoint.CheckpointError(
            f'{path} holds no {key}, its first keys are {", ".join(map(str, list(state)[:3]))}: '
            f'if it is a state dict, {_import_it(where)}'
        )
    with checkpoint.refusing_other_forms(path):
        return path, state, checkpoint.unwrapped(state[key])


def _import_it(where):
    return f'import it with --import_ckpt={where} --logdir=NEW'


def _stored(state, weights):
    """Return the config of a checkpoint's content as a dict.

    pytorch-ddpm's has none: the flags describe all but the channels, for which it had no flag.
    """
    if state.get('config') is not None:
        return state['config']
    return {'channels': weights['head.weight'].shape[1]} if 'head.weight' in weights else {}


def _network(config, weights, path):
    with torch.device('meta'):  # check shapes first: a damaged file may ask for any amount of memory
        checkpoint.check_weights(build.network(config).state_dict(), weights, path)
    net = build.network(config)
    net.load_state_dict(weights)
    return net


def _guide(config):
    """Return the network of --guide_by. It may be another one, but must predict the same of the same images."""
    path, state, weights = _read(config.guide_by, config.weights)
    with checkpoint.refusing_other_forms(path):
        stored = _stored(state, weights)
        own = set(keys('network')) - {'img_size', 'num_classes'}
        guide = replace(config, **{key: stored[key] for key in own if key in stored})
        wrong = disagreements(guide, stored)
        names = stored.get('class_names') or config.class_names
        if config.num_classes and names != config.class_names:
            wrong.append(f'classes {shown(config.class_names)} (trained with {shown(names)})')
        if wrong:
            raise UsageError(f'--guide_by={config.guide_by} does not fit {", ".join(wrong)}')
        return _network(guide, weights, path)


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
    by_label = config.num_classes and not config.guide_by and (config.guidance != 1 or config.figure == 'guidance')
    if by_label and always_labelled:
        logging.warning(
            'guidance needs a network trained without labels too, and this one has not been (--p_uncond=0): what it '
            'draws at --guidance other than 1 means nothing'
        )
