"""State dicts under other programs' names: pytorch-ddpm's, those of the authors' network, diffusers'.

A format is a table of names for the modules of `UNet`. The network's options are read off the shapes of the weights,
and every key and shape of a file must be accounted for.
"""

import json
import re
from types import SimpleNamespace
from typing import NamedTuple

import safetensors
import torch

from run import build, checkpoint
from run.checkpoint import CheckpointError

TIME_TABLE = 'time_embedding.timembedding.0'  # computed from T: only pytorch-ddpm keeps it with the weights
TIME_DENSE = 'time_embedding.timembedding.1'  # [4 ch, ch]: its columns are in the order of the table's


class Names(NamedTuple):
    """How a format names the modules of `UNet`.

    Of a way down or up: its residual block, the attention of one, the resampling. j: its place in `UNet`'s list; level:
    counted from the largest map; back: from the smallest; i: within a level; nth: i + 1.
    """

    outer: dict
    block: dict  # within a residual block
    attn: dict  # within attention
    down: tuple
    middle: tuple
    up: tuple


OFFICIAL = Names(
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
PYTORCH_DDPM = Names(
    outer={name: name for name in (TIME_TABLE, *OFFICIAL.outer, 'label_embedding')},
    block={name: name for name in OFFICIAL.block},
    attn={name: name for name in OFFICIAL.attn},
    down=('downblocks.{j}', 'downblocks.{j}.attn', 'downblocks.{j}.main'),
    middle=('middleblocks.{j}', 'middleblocks.{j}.attn'),
    up=('upblocks.{j}', 'upblocks.{j}.attn', 'upblocks.{j}.main'),
)
DIFFUSERS = Names(
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
# The arch of what is stored under these names; None: as its config.json says.
FORMATS = {'pytorch_ddpm': PYTORCH_DDPM, 'official': OFFICIAL, None: DIFFUSERS}
# diffusers' names for the projections of attention before 0.17, as the published google/ddpm-* still have them.
FORMER = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}


def current_name(key):
    """A key of diffusers as it is named now."""
    return re.sub(rf'\.({"|".join(FORMER)})\.', lambda found: f'.{FORMER[found[1]]}.', key)


def their_key(key, names, levels, num_res_blocks):
    """The key of a format for one of `UNet`'s. Raises KeyError where the format has none."""
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
    """The flags of the network that a state dict is of, told by its keys and shapes.

    Raises CheckpointError, naming the key, where one that tells is missing.
    """

    def count(module):
        pattern = re.sub(r'\\{\w+\\}', r'\\d+', re.escape(f'{module}.weight'))
        return sum(re.fullmatch(pattern, key) is not None for key in weights)

    def shape(key):
        found = their_key(key, names, levels, n)
        if found not in weights:
            raise CheckpointError(f'{path} is of another architecture: {found} is missing')
        return weights[found].shape

    levels = 1 + count(names.down[2])
    n = max(1, count(f'{names.down[0]}.{names.block["block2.3"]}') // levels)
    head = shape('head.weight')
    if len(head) != 4 or not head[0]:
        raise CheckpointError(f'{path} is of another architecture: its first convolution is {tuple(head)}')
    ch, channels = head[:2]
    blocks = [f'downblocks.{level * (n + 1)}' for level in range(levels)]  # the first of each level
    told = {
        'net': 'unet',
        'ch': ch,
        'ch_mult': [shape(f'{block}.block2.3.weight')[0] // ch for block in blocks],
        'attn': [
            level
            for level, block in enumerate(blocks)
            if their_key(f'{block}.attn.group_norm.weight', names, levels, n) in weights
        ],
        'head_dim': 0,
        'num_res_blocks': n,
        'channels': channels,
        'num_classes': 0,
    }
    if shape('tail.2.weight')[0] == 2 * channels:  # as `learned` has, which others seldom do
        told['var_type'] = 'learned_range'
    if names is PYTORCH_DDPM:
        told['T'] = shape(f'{TIME_TABLE}.weight')[0]
    labels = weights.get(f'{names.outer.get("label_embedding")}.weight')
    if labels is not None:
        told['num_classes'] = len(labels) - 1
    return told


def network(told):
    """The `UNet` of flags, of any image size and without dropout. Raises ValueError as it does."""
    unsaid = {'T': 1, 'var_type': 'fixedlarge', 'head_dim': 0}
    return build.network(SimpleNamespace(**{**unsaid, **told, 'dropout': 0.0, 'img_size': None}))


def rows(told, names):
    """[(key of `UNet`, a tensor of its shape, key of the format, one of its shape there)] of every weight it has."""
    with torch.device('meta'):
        ours = network(told).state_dict()
    if TIME_TABLE not in names.outer:
        del ours[f'{TIME_TABLE}.weight']
    table = []
    for key, value in ours.items():
        dense = names is DIFFUSERS and '.attn.proj' in key  # theirs is Linear, ours a 1x1 convolution
        theirs = their_key(key, names, len(told['ch_mult']), told['num_res_blocks'])
        table.append((key, value, theirs, value.flatten(1) if dense and value.ndim == 4 else value))
    return table


def convert(weights, told, names, path):
    """A state dict of `UNet`, but for the time table where the format has none, from one under other names.

    Raises CheckpointError, listing keys and shapes, unless every one of them is the network's.
    """
    try:
        table = rows(told, names)
    except ValueError as error:
        raise CheckpointError(f'{path} is of another architecture: {error}') from error
    checkpoint.check_weights({theirs: value for _, _, theirs, value in table}, weights, path)
    return {key: weights[theirs].float().reshape(value.shape) for key, value, theirs, _ in table}


def identify(weights, path):
    """(flags, names) of a state dict; the flags of diffusers' are None. Raises CheckpointError for no `UNet`'s."""
    for arch, names in FORMATS.items():
        if f'{names.outer[TIME_DENSE]}.weight' in weights:
            return arch and {**describe(weights, names, path), 'arch': arch}, names
    raise CheckpointError(f'{path} is of no network known here: its first keys are {", ".join(list(weights)[:3])}')


def load(path):
    """(config or None, (last weights, averaged weights)) of a file, under whatever names; 'module.' is left out.

    A checkpoint of this program or of pytorch-ddpm, a state dict, DDIM's list of them, or safetensors.

    Raises CheckpointError where it is damaged, unsafe or no state dict; FileNotFoundError.
    """
    if str(path).endswith('.safetensors'):
        try:
            with safetensors.safe_open(path, 'pt') as file:
                config = (file.metadata() or {}).get('config')
                weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return _config_of(config), (weights, weights)
        except (safetensors.SafetensorError, ValueError) as error:
            raise CheckpointError(f'{path} is damaged or no safetensors file ({error})') from error
    state = checkpoint.read(path)
    config = None
    if isinstance(state, dict) and 'net_model' in state and 'ema_model' in state:
        config, found = state.get('config'), [state['net_model'], state['ema_model']]
    elif isinstance(state, (list, tuple)) and state:  # DDIM: [model, optimiser, epoch, step, ema]
        found = [state[0], state[-1] if isinstance(state[-1], dict) else state[0]]
    else:
        found = [state, state]
    for weights in found:
        if not isinstance(weights, dict) or not all(
            isinstance(key, str) and isinstance(value, torch.Tensor) and value.ndim for key, value in weights.items()
        ):
            raise CheckpointError(f'{path} holds no state dict: a dict of tensors, as network.state_dict() gives it')
    return config, [checkpoint.unwrapped(weights) for weights in found]


def _config_of(metadata):
    if metadata is None:
        return None
    config = json.loads(metadata)
    if not isinstance(config, dict):
        raise ValueError('its config is no object')
    if config.get('moments') is not None:
        config['moments'] = torch.tensor(config['moments'])
    return config
