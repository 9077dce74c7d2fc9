"""diffusers pipelines, in and out: a folder of unet/, scheduler/, model_index.json and a model card, README.md.

`DDPMPipeline.from_pretrained` and `DDIMPipeline.from_pretrained` load what `write` makes, without diffusers.
"""

import json
import logging
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffusion import learns_variance
from interop import formats, scheduler
from interop.diffusers_json import VERSION, differences, read_json
from interop.formats import DIFFUSERS, TIME_DENSE, TIME_TABLE
from model import ARCHS
from run.checkpoint import CheckpointError
from run.errors import usage

WEIGHTS = 'diffusion_pytorch_model'
FREQ_SHIFTS = {'pytorch_ddpm': 0, 'official': 1}  # of the time table
SUGGESTED = {'dropout': 'dropout', 'sample_size': 'img_size'}  # by a config.json, beside what the weights tell
# What diffusers takes where a config leaves it out, if it is not what `unet_config` gives.
UNET_DEFAULTS = {'attention_head_dim': 8, 'flip_sin_to_cos': True}


def unet_config(config):
    """The arguments of diffusers' UNet2DModel for the `UNet` of a config, a dict of flags."""
    levels, arch = range(len(config['ch_mult'])), ARCHS[config['arch']]
    return {
        '_class_name': 'UNet2DModel',
        'in_channels': config['channels'],
        'out_channels': config['channels'] * (1 + learns_variance(config.get('var_type', 'fixedlarge'))),
        'block_out_channels': [config['ch'] * mult for mult in config['ch_mult']],
        'down_block_types': ['AttnDownBlock2D' if i in config['attn'] else 'DownBlock2D' for i in levels],
        'up_block_types': ['AttnUpBlock2D' if i in config['attn'] else 'UpBlock2D' for i in reversed(levels)],
        'mid_block_type': 'UNetMidBlock2D',
        'layers_per_block': config['num_res_blocks'],
        'num_class_embeds': config['num_classes'] + 1 if config['num_classes'] else None,
        'class_embed_type': None,
        'freq_shift': FREQ_SHIFTS[config['arch']],
        'downsample_padding': int(arch.pad_all_sides),
        'norm_eps': arch.norm_eps,
        'norm_num_groups': 32,
        'attn_norm_num_groups': None,
        'attention_head_dim': config['head_dim'] or None,
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
    """(flags, state dict of `UNet` but for the time table) of a pipeline of diffusers, or of its unet alone.

    With labels, the last row of the embedding stands for no label, as `write` has it.
    Warns of what `scheduler.notes` tells.

    Raises CheckpointError where a part is damaged, or of a network or scheduler that is not here, naming what differs.
    """
    folder = Path(folder)
    unet = folder / 'unet' if (folder / 'unet').is_dir() else folder
    theirs = {**UNET_DEFAULTS, **read_json(unet / 'config.json')}
    found = [path for path in (unet / f'{WEIGHTS}.safetensors', unet / f'{WEIGHTS}.bin') if path.exists()]
    if not found:
        raise CheckpointError(f'{unet} holds no {WEIGHTS}.safetensors or .bin')
    _, (weights, _) = formats.load(found[0])
    weights = {formats.current_name(key): value for key, value in weights.items()}
    told = {**formats.describe(weights, DIFFUSERS, found[0]), 'head_dim': theirs['attention_head_dim'] or 0}
    misfits = {arch: differences(unet_config({**told, 'arch': arch}), theirs) for arch in ARCHS}
    told['arch'] = min(ARCHS, key=lambda arch: len(misfits[arch]))
    if misfits[told['arch']]:
        raise CheckpointError(f'{folder} is of another architecture: {"; ".join(misfits[told["arch"]])}')
    told |= {ours: theirs[key] for key, ours in SUGGESTED.items() if isinstance(theirs.get(key), int | float)}
    parts = folder / 'scheduler' if (folder / 'scheduler').is_dir() else folder
    # DDIMScheduler, which has no variance_type, adds the noise of fixedsmall where it is asked for some.
    told = {'var_type': 'fixedsmall', **told, **scheduler.read_scheduler(parts / 'scheduler_config.json')}
    for note in scheduler.notes(told):
        logging.warning('%s: %s', folder, note)
    net = formats.convert(weights, told, DIFFUSERS, found[0])
    dense = net[f'{TIME_DENSE}.weight']
    if theirs['flip_sin_to_cos']:
        dense = torch.cat(dense.chunk(2, dim=1)[::-1], dim=1)
    if told['arch'] == 'pytorch_ddpm':  # sin and cos in turn
        dense = torch.stack(dense.chunk(2, dim=1), dim=2).flatten(1)
    net[f'{TIME_DENSE}.weight'] = dense
    return told, net


def write(folder, config, net, card):
    """A pipeline of a config's network and sampler, into an empty folder. card: the text of its README.md.

    Raises UsageError where diffusers cannot represent them.
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
    parts = {'unet/config.json': unet, 'scheduler/scheduler_config.json': scheduler.scheduler_config(flags)}
    parts['model_index.json'] = {
        '_class_name': f'{scheduler.scheduler_name(flags)}Pipeline',
        '_diffusers_version': VERSION,
        'scheduler': ['diffusers', f'{scheduler.scheduler_name(flags)}Scheduler'],
        'unet': ['diffusers', 'UNet2DModel'],
    }
    for name, value in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value, indent=2) + '\n')
    theirs = {
        key: weights[ours].reshape(value.shape).cpu().contiguous()
        for ours, _, key, value in formats.rows(flags, DIFFUSERS)
    }
    save_file(theirs, folder / 'unet' / f'{WEIGHTS}.safetensors', {'format': 'pt'})
    (folder / 'README.md').write_text(card)


def _check(flags, net):
    for broken, why in (
        (flags['net'] != 'unet', f'--net={flags["net"]} is none of its networks'),
        (
            flags['ch_mult'][0] != 1,
            f'its first level has --ch channels, not --ch_mult={flags["ch_mult"][0]} times them',
        ),
        (flags['mean_type'] not in scheduler.PREDICTION_TYPES.values(), f'it has no --mean_type={flags["mean_type"]}'),
        (flags['var_type'] not in scheduler.VARIANCE_TYPES.values(), f'it has no --var_type={flags["var_type"]}'),
        (flags['prior'] != 'standard', 'it starts from N(0, I): --prior=standard draws so'),
        (scheduler.misfit(flags), f'{scheduler.misfit(flags)}: --spacing=leading is its usual one'),
    ):
        if broken:
            raise ValueError(f'diffusers cannot represent this model: {why}')
    table = net.state_dict()[f'{TIME_TABLE}.weight'].cpu()
    if not torch.allclose(table, ARCHS[flags['arch']].time_table(*table.shape), atol=1e-3):
        raise ValueError(f'diffusers cannot represent this model: its time table is not that of --arch={flags["arch"]}')
