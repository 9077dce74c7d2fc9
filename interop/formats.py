"""Translates state dicts from the names of other programs: pytorch-ddpm, the authors' network, and diffusers.

A format is a table that names the modules of `UNet`. The options of the network are read off the shapes of the weights.
Every key of a file and every shape must be accounted for.
"""

import json
import os
import re
from types import SimpleNamespace
from typing import NamedTuple

import safetensors
import torch

from run import build, checkpoint
from run.checkpoint import CheckpointError

TIME_TABLE = 'time_embedding.timembedding.0'  # computed from T; only pytorch-ddpm keeps it with the weights
TIME_DENSE = 'time_embedding.timembedding.1'  # [4 ch, ch]: its columns are in the order of the time table's


class ModuleNames(NamedTuple):
    """Lists the names that a format gives the modules of `UNet`.

    down and up are name patterns of (residual block, attention, resampling); middle is those of (residual block,
    attention). A pattern has these places to fill: {j} is the position in `UNet`'s list; {level} is counted from the
    largest map and {back} from the smallest; {i} is the position within the level, and {nth} is i + 1.

    outer, block and attn are {name in `UNet`: name in the format}: outer outside of the blocks, block within a residual
    block, attn within attention.
    """

    outer: dict
    block: dict
    attn: dict
    down: tuple
    middle: tuple
    up: tuple


OFFICIAL = ModuleNames(
    outer={
        TIME_DENSE: 'temb.dense.0',
        'time_embedding.timembedding.3': 'temb.dense.1',
        'head': 'conv_in',
        'tail.0': 'norm_out',
        'tail.2': 'conv_out',
    },
    block={
        'block1.0': 'norm1',
        'block1.2': 'conv1',
        'temb_proj.1': 'temb_proj',
        'block2.0': 'norm2',
        'block2.3': 'conv2',
        'shortcut': 'nin_shortcut',
    },
    attn={'group_norm': 'norm', 'proj_q': 'q', 'proj_k': 'k', 'proj_v': 'v', 'proj': 'proj_out'},
    down=('down.{level}.block.{i}', 'down.{level}.attn.{i}', 'down.{level}.downsample.conv'),
    middle=('mid.block_{nth}', 'mid.attn_1'),
    up=('up.{level}.block.{i}', 'up.{level}.attn.{i}', 'up.{level}.upsample.conv'),
)
PYTORCH_DDPM = ModuleNames(
    outer={name: name for name in (TIME_TABLE, *OFFICIAL.outer, 'label_embedding')},
    block={name: name for name in OFFICIAL.block},
    attn={name: name for name in OFFICIAL.attn},
    down=('downblocks.{j}', 'downblocks.{j}.attn', 'downblocks.{j}.main'),
    middle=('middleblocks.{j}', 'middleblocks.{j}.attn'),
    up=('upblocks.{j}', 'upblocks.{j}.attn', 'upblocks.{j}.main'),
)
DIFFUSERS = ModuleNames(
    outer={
        TIME_DENSE: 'time_embedding.linear_1',
        'time_embedding.timembedding.3': 'time_embedding.linear_2',
        'label_embedding': 'class_embedding',
        'head': 'conv_in',
        'tail.0': 'conv_norm_out',
        'tail.2': 'conv_out',
    },
    block={**OFFICIAL.block, 'temb_proj.1': 'time_emb_proj', 'shortcut': 'conv_shortcut'},
    attn={'group_norm': 'group_norm', 'proj_q': 'to_q', 'proj_k': 'to_k', 'proj_v': 'to_v', 'proj': 'to_out.0'},
    down=(
        'down_blocks.{level}.resnets.{i}',
        'down_blocks.{level}.attentions.{i}',
        'down_blocks.{level}.downsamplers.0.conv',
    ),
    middle=('mid_block.resnets.{i}', 'mid_block.attentions.0'),
    up=('up_blocks.{back}.resnets.{i}', 'up_blocks.{back}.attentions.{i}', 'up_blocks.{back}.upsamplers.0.conv'),
)
# arch -> names. The arch of diffusers' networks is None: their config.json tells it.
FORMATS = {'pytorch_ddpm': PYTORCH_DDPM, 'official': OFFICIAL, None: DIFFUSERS}
# How diffusers before 0.17 named attention's projections -> how it names them now. The published google/ddpm-* have the
# former names.
FORMER = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}


def current_name(key):
    """Gives the present name of a key of diffusers."""
    return re.sub(rf'\.({"|".join(FORMER)})\.', lambda match: f'.{FORMER[match[1]]}.', key)


def their_key(key, names, levels, num_res_blocks):
    """Translates a key of `UNet` into that of a format. Raises KeyError if the format has no name for it."""
    module, _, leaf = key.rpartition('.')
    side, *rest = module.split('.', 2)
    if side not in ('downblocks', 'middleblocks', 'upblocks'):
        return f'{names.outer[module]}.{leaf}'
    j, inner = int(rest[0]), rest[1]
    places = {'downblocks': names.down, 'middleblocks': names.middle, 'upblocks': names.up}[side]
    n, i = divmod(j, num_res_blocks + {'downblocks': 1, 'middleblocks': 2, 'upblocks': 2}[side])
    level, back = (levels - 1 - n, n) if side == 'upblocks' else (n, levels - 1 - n)
    if inner == 'main':
        theirs = places[2]
    elif inner.startswith('attn.'):
        theirs = f'{places[1]}.{names.attn[inner.removeprefix("attn.")]}'
    else:
        theirs = f'{places[0]}.{names.block[inner]}'
    return f'{theirs.format(j=j, level=level, back=back, i=i, nth=i + 1)}.{leaf}'


def describe(weights, names, path):
    """Reads the flags of the network off the keys and shapes of its state dict; returns them as a dict.

    Raises CheckpointError, naming the key, if a key that is needed for this is missing.
    """

    def count(module):
        pattern = re.sub(r'\\{\w+\\}', r'\\d+', re.escape(f'{module}.weight'))
        return sum(re.fullmatch(pattern, key) is not None for key in weights)

    def shape(key):
        theirs = their_key(key, names, levels, n)
        if theirs not in weights:
            raise CheckpointError(f'{path} is of another architecture: {theirs} is missing')
        return weights[theirs].shape

    levels = 1 + count(names.down[2])
    n = max(1, count(f'{names.down[0]}.{names.block["block2.3"]}') // levels)
    head = shape('head.weight')
    if len(head) != 4 or not head[0]:
        raise CheckpointError(f'{path} is of another architecture: its first convolution is {tuple(head)}')
    ch, channels = head[:2]
    blocks = [f'downblocks.{level * (n + 1)}' for level in range(levels)]  # the first block of each level
    attn = [their_key(f'{block}.attn.group_norm.weight', names, levels, n) for block in blocks]
    label_embedding = weights.get(f'{names.outer.get("label_embedding")}.weight')
    flags = {
        'net': 'unet',
        'ch': ch,
        'ch_mult': [shape(f'{block}.block2.3.weight')[0] // ch for block in blocks],
        'attn': [level for level, key in enumerate(attn) if key in weights],
        'head_dim': 0,
        'num_res_blocks': n,
        'channels': channels,
        'num_classes': 0 if label_embedding is None else len(label_embedding) - 1,
    }
    if shape('tail.2.weight')[0] == 2 * channels:  # `learned` has as many, but other programs seldom have that
        flags['var_type'] = 'learned_range'
    if names is PYTORCH_DDPM:
        flags['T'] = shape(f'{TIME_TABLE}.weight')[0]
    return flags


def network(flags):
    """Builds the `UNet` that flags describe, without dropout and for images of any size. Raises ValueError as `UNet`.

    flags: as `describe` gives them, with 'arch'. If they lack T, the time table has one row.
    """
    told = {'T': 1, 'var_type': 'fixedlarge', 'head_dim': 0, **flags}
    return build.network(SimpleNamespace(**{**told, 'net': 'unet', 'dropout': 0.0, 'img_size': None}))


def rows(flags, names):
    """Lists the weights of a network in `UNet` and in a format: (our key, our tensor, their key, their tensor).

    The tensors are on the meta device: they tell the shapes.
    """
    with torch.device('meta'):
        ours = network(flags).state_dict()
    if TIME_TABLE not in names.outer:
        del ours[f'{TIME_TABLE}.weight']
    table = []
    for key, value in ours.items():
        dense = names is DIFFUSERS and '.attn.proj' in key  # theirs is a Linear, ours a 1x1 convolution
        theirs = their_key(key, names, len(flags['ch_mult']), flags['num_res_blocks'])
        table.append((key, value, theirs, value.flatten(1) if dense and value.ndim == 4 else value))
    return table


def convert(weights, flags, names, path):
    """Translates a state dict from a format's names to those of `UNet`. It has no time table if the format has none.

    Raises CheckpointError, listing keys and shapes, unless the network has exactly these weights.
    """
    try:
        table = rows(flags, names)
    except ValueError as error:
        raise CheckpointError(f'{path} is of another architecture: {error}') from error
    checkpoint.check_weights({theirs: value for _, _, theirs, value in table}, weights, path)
    return {key: weights[theirs].float().reshape(value.shape) for key, value, theirs, _ in table}


def identify(weights, path):
    """Finds the format of a state dict; returns (flags, names). The flags are None for the format of diffusers.

    Raises CheckpointError if the state dict is not that of a `UNet` in any format.
    """
    for arch, names in FORMATS.items():
        if f'{names.outer[TIME_DENSE]}.weight' in weights:
            return arch and {**describe(weights, names, path), 'arch': arch}, names
    raise CheckpointError(f'{path} is of no network known here: its first keys are {", ".join(list(weights)[:3])}')


def read_file(path):
    """Reads a file that holds weights; returns (config or None, what is stored there).

    The file is safetensors if its name says so, and else what torch.save wrote. Only the safetensors of `--export` and
    checkpoints of this program hold a config.

    Raises CheckpointError if the file is damaged or unsafe; FileNotFoundError.
    """
    if not str(path).endswith('.safetensors'):
        of_run = os.path.exists(checkpoint.previous(path))  # which a kill may have left without its last checkpoint
        stored = (checkpoint.load if of_run else checkpoint.read)(path)
        return (stored.get('config') if _is_checkpoint(stored) else None), stored
    try:
        with safetensors.safe_open(path, 'pt') as file:
            config = (file.metadata() or {}).get('config')
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return _config_of(config), weights
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f'{path} is damaged or no safetensors file ({error})') from error


def state_dicts(stored, path):
    """Returns the state dicts [last weights, averaged weights] of what a file stores, without 'module.' in their keys.

    stored: a checkpoint of this program or of pytorch-ddpm, a list as DDIM saves it, or one state dict, which then
    counts as both.

    Raises CheckpointError if it is none of these.
    """
    if _is_checkpoint(stored):
        both = [stored['net_model'], stored['ema_model']]
    elif isinstance(stored, (list, tuple)) and stored:  # DDIM: [model, optimiser, epoch, step, ema]
        both = [stored[0], stored[-1] if isinstance(stored[-1], dict) else stored[0]]
    else:
        both = [stored, stored]
    for weights in both:
        if not isinstance(weights, dict) or not all(
            isinstance(key, str) and isinstance(value, torch.Tensor) and value.ndim for key, value in weights.items()
        ):
            raise CheckpointError(f'{path} holds no state dict: a dict of tensors, as network.state_dict() gives it')
    return [checkpoint.unwrapped(weights) for weights in both]


def _is_checkpoint(stored):
    """Tells whether a file stores a checkpoint as this program and pytorch-ddpm write it."""
    return isinstance(stored, dict) and 'net_model' in stored and 'ema_model' in stored


def _config_of(metadata):
    """Parses the config in the metadata of a safetensors file, which is JSON or None. Raises ValueError."""
    if metadata is None:
        return None
    config = json.loads(metadata)
    if not isinstance(config, dict):
        raise ValueError('its config is not a JSON object')
    if config.get('moments') is not None:
        config['moments'] = torch.tensor(config['moments'])
    return config
