"""Reads and writes pipelines of diffusers: folders with unet/, scheduler/, model_index.json and a card, README.md.

`DiffusionPipeline.from_pretrained` loads what `write` makes. diffusers is not needed here. Flags are a dict by name.
"""

import json
import logging
from pathlib import Path

import torch
from safetensors.torch import save_file

from interop import formats, scheduler
from interop.counterparts import found
from interop.diffusers_json import VERSION, differences, read_json
from interop.formats import DIFFUSERS, TIME_DENSE, TIME_TABLE
from model import ARCHS
from process.solvers import learns_variance
from run.checkpoint import CheckpointError
from run.errors import usage

WEIGHTS = 'diffusion_pytorch_model'
FREQ_SHIFTS = {'pytorch_ddpm': 0, 'official': 1}  # the freq_shift that gives the time table of each arch
# What diffusers assumes if a config leaves it out. The rest of its defaults are what `unet_config` gives.
UNET_DEFAULTS = {'attention_head_dim': 8, 'flip_sin_to_cos': True}


def unet_config(flags):
    """Gives the arguments of diffusers' UNet2DModel for a `UNet`: the content of its config.json, as a dict."""
    levels, arch = range(len(flags['ch_mult'])), ARCHS[flags['arch']]
    return {
        '_class_name': 'UNet2DModel',
        'in_channels': flags['channels'],
        'out_channels': flags['channels'] * (1 + learns_variance(flags.get('var_type', 'fixedlarge'))),
        'block_out_channels': [flags['ch'] * mult for mult in flags['ch_mult']],
        'down_block_types': ['AttnDownBlock2D' if i in flags['attn'] else 'DownBlock2D' for i in levels],
        'up_block_types': ['AttnUpBlock2D' if i in flags['attn'] else 'UpBlock2D' for i in reversed(levels)],
        'mid_block_type': 'UNetMidBlock2D',
        'layers_per_block': flags['num_res_blocks'],
        'num_class_embeds': flags['num_classes'] + 1 if flags['num_classes'] else None,
        'class_embed_type': None,
        'freq_shift': FREQ_SHIFTS[flags['arch']],
        'downsample_padding': int(arch.pad_all_sides),
        'norm_eps': arch.norm_eps,
        'norm_num_groups': 32,
        'attn_norm_num_groups': None,
        'attention_head_dim': flags['head_dim'] or None,
        'add_attention': True,
        'center_input_sample': False,
        'time_embedding_type': 'positional',
        'time_embedding_dim': None,
        'resnet_time_scale_shift': 'default',
        'mid_block_scale_factor': 1,
        'downsample_type': 'conv',
        'upsample_type': 'conv',
        'act_fn': 'silu',
    }


def read(folder):
    """Reads a pipeline of diffusers; returns (flags, state dict of `UNet` without the time table).

    Older pipelines have no subfolders. If the network takes labels, the last row of the embedding is taken for no
    label, as `write` has it. That, and the notes of `scheduler.read`, are logged as warnings.

    Raises CheckpointError if a part is damaged. If the network or the scheduler is none of ours, the error names what
    differs.
    """
    folder = Path(folder)
    unet = folder / 'unet' if (folder / 'unet').is_dir() else folder
    theirs = {**UNET_DEFAULTS, **read_json(unet / 'config.json')}
    files = [path for path in (unet / f'{WEIGHTS}.safetensors', unet / f'{WEIGHTS}.bin') if path.exists()]
    if not files:
        raise CheckpointError(f'{unet} holds no {WEIGHTS}.safetensors or .bin')
    _, stored = formats.read_file(files[0])
    weights, _ = formats.state_dicts(stored, files[0])
    weights = {formats.current_name(key): value for key, value in weights.items()}
    flags = {**formats.describe(weights, DIFFUSERS, files[0]), 'head_dim': theirs['attention_head_dim'] or 0}
    flags['arch'] = _arch(flags, theirs, folder)
    flags |= _suggested(theirs, unet)
    steps = folder / 'scheduler' if (folder / 'scheduler').is_dir() else folder
    drawn, notes = scheduler.read(steps / 'scheduler_config.json')
    # Only DDPMScheduler has a variance_type. If another adds noise, it is that of fixedsmall.
    flags = {'var_type': 'fixedsmall', **flags, **drawn}
    if last := flags['num_classes']:
        notes.insert(0, f'labels 0 to {last - 1}; row {last} of its embedding is taken for no label')
    for note in notes:
        logging.warning('%s: %s', folder, note)
    net = formats.convert(weights, flags, DIFFUSERS, files[0])
    dense = net[f'{TIME_DENSE}.weight']
    if theirs['flip_sin_to_cos']:
        dense = torch.cat(dense.chunk(2, dim=1)[::-1], dim=1)
    if flags['arch'] == 'pytorch_ddpm':  # its table alternates sin and cos
        dense = torch.stack(dense.chunk(2, dim=1), dim=2).flatten(1)
    net[f'{TIME_DENSE}.weight'] = dense
    return flags, net


def _suggested(theirs, folder):
    """Returns the flags that a config.json tells beside the architecture. Raises CheckpointError for a broken size."""
    flags = {'dropout': theirs['dropout']} if isinstance(theirs.get('dropout'), int | float) else {}
    if (size := theirs.get('sample_size')) is None:
        return flags
    lengths = size if isinstance(size, list) else [size, size]  # [height, width]
    if len(lengths) != 2 or not all(isinstance(length, int) and length > 0 for length in lengths):
        raise CheckpointError(f'{folder}: sample_size must be a number of pixels or a list of two, not {size}')
    height, width = lengths
    return {**flags, 'img_size': height if height == width else lengths}


def _arch(flags, theirs, folder):
    """Finds the key of `ARCHS` that a config.json, `theirs`, is of. Raises CheckpointError if it is of none."""
    misfits = {arch: differences(unet_config({**flags, 'arch': arch}), theirs) for arch in ARCHS}
    arch = min(ARCHS, key=lambda arch: len(misfits[arch]))
    if misfits[arch]:
        raise CheckpointError(f'{folder} is of another architecture: {"; ".join(misfits[arch])}')
    return arch


def write(folder, config, net, card):
    """Writes a network and its sampler into an empty folder, as a pipeline. card: the text of its README.md.

    Raises UsageError if diffusers cannot represent them.
    """
    flags = vars(config)
    with usage():
        _check(flags, net)
    weights = net.state_dict()
    dense = weights[f'{TIME_DENSE}.weight']
    if config.arch == 'pytorch_ddpm':
        weights[f'{TIME_DENSE}.weight'] = torch.cat([dense[:, 0::2], dense[:, 1::2]], dim=1)
    unet = {**unet_config(flags), '_diffusers_version': VERSION, 'flip_sin_to_cos': False}
    unet |= {'sample_size': config.img_size, 'dropout': config.dropout}
    folder = Path(folder)
    name, _ = found(flags)
    parts = {'unet/config.json': unet, 'scheduler/scheduler_config.json': scheduler.arguments(flags)}
    parts['model_index.json'] = {
        # DDIMPipeline puts a DDIMScheduler in place of any other; DDPMPipeline keeps the one it finds.
        '_class_name': 'DDIMPipeline' if name == 'DDIM' else 'DDPMPipeline',
        '_diffusers_version': VERSION,
        'scheduler': ['diffusers', f'{name}Scheduler'],
        'unet': ['diffusers', 'UNet2DModel'],
    }
    for name, value in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value, indent=2) + '\n')
    theirs = {
        their_key: weights[our_key].reshape(their_value.shape).cpu().contiguous()
        for our_key, _, their_key, their_value in formats.rows(flags, DIFFUSERS)
    }
    save_file(theirs, folder / 'unet' / f'{WEIGHTS}.safetensors', {'format': 'pt'})
    (folder / 'README.md').write_text(card, encoding='utf-8')


def _check(flags, net):
    """Raises ValueError if diffusers cannot represent the network or its sampler."""
    misfit = scheduler.misfit(flags)
    for broken, why in (
        (flags['net'] != 'unet', f'--net={flags["net"]} is none of its networks'),
        (
            flags['ch_mult'][0] != 1,
            f'its first level has --ch channels, not --ch_mult={flags["ch_mult"][0]} times them',
        ),
        (flags['mean_type'] not in scheduler.PREDICTION_TYPES.values(), f'it has no --mean_type={flags["mean_type"]}'),
        (flags['var_type'] not in scheduler.VARIANCE_TYPES.values(), f'it has no --var_type={flags["var_type"]}'),
        (flags['prior'] != 'standard', 'it starts from N(0, I): --prior=standard draws so'),
        (misfit, misfit),
    ):
        if broken:
            raise ValueError(f'diffusers cannot represent this model: {why}')
    table = net.state_dict()[f'{TIME_TABLE}.weight'].cpu()
    wanted = ARCHS[flags['arch']].embed(torch.arange(len(table)).float(), table.shape[1])
    if not torch.allclose(table, wanted, atol=1e-3):
        raise ValueError(f'diffusers cannot represent this model: its time table is not that of --arch={flags["arch"]}')
