"""diffusers pipelines, in and out: a folder of unet/, scheduler/, model_index.json and a model card, README.md.

`DDPMPipeline.from_pretrained` and `DDIMPipeline.from_pretrained` load what `write` makes, without diffusers.
"""

import json
import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from interop import formats
from interop.formats import DIFFUSERS, TIME_DENSE, TIME_TABLE
from model import ARCHS
from process.schedules import SCHEDULES, SPACINGS, known, make_betas, make_timesteps
from process.solvers import learns_variance
from run.checkpoint import CheckpointError
from run.errors import usage

WEIGHTS = 'diffusion_pytorch_model'
VERSION = '0.30.0'  # of diffusers, whose arguments these are
FREQ_SHIFTS = {'pytorch_ddpm': 0, 'official': 1}  # of the time table
# diffusers' names for ours; of two, the first is written. fixed_*_log are the same variances kept as logarithms.
BETA_SCHEDULES = {'linear': 'linear', 'scaled_linear': 'quad', 'squaredcos_cap_v2': 'cosine', 'sigmoid': 'sigmoid'}
VARIANCE_TYPES = {
    'fixed_small': 'fixedsmall',
    'fixed_large': 'fixedlarge',
    'fixed_small_log': 'fixedsmall',
    'fixed_large_log': 'fixedlarge',
    'learned_range': 'learned_range',
}
PREDICTION_TYPES = {'epsilon': 'epsilon', 'sample': 'xstart', 'v_prediction': 'v'}
SUGGESTED = {'dropout': 'dropout', 'sample_size': 'img_size'}  # by a config.json, beside what the weights tell
# What diffusers takes where a config leaves it out, if it is not what `unet_config` and `scheduler_config` give.
UNET_DEFAULTS = {'attention_head_dim': 8, 'flip_sin_to_cos': True}
SCHEDULER_DEFAULTS = {
    'num_train_timesteps': 1000,
    'beta_start': 1e-4,
    'beta_end': 0.02,
    'beta_schedule': 'linear',
    'trained_betas': None,
    'variance_type': 'fixed_small',
    'clip_sample': True,
    'prediction_type': 'epsilon',
    'timestep_spacing': 'leading',
}
# What must be so, for the sampler has no other.
SCHEDULER_FIXED = {
    'thresholding': False,
    'clip_sample_range': 1.0,
    'steps_offset': 0,
    'rescale_betas_zero_snr': False,
    'set_alpha_to_one': True,
}
# The arguments of one scheduler alone.
SCHEDULER_OWN = {'DDPM': {'variance_type'}, 'DDIM': {'set_alpha_to_one'}}


def scheduler_name(config):
    """The scheduler of diffusers that takes the steps of a config, a dict of flags: a key of `SCHEDULER_OWN`."""
    return 'DDPM' if config['eta'] == 1 else 'DDIM'


def misfit(config):
    """Why the scheduler of a config's sampler draws something else along its timesteps; None where it does not.

    Raises ValueError as `make_timesteps`.
    """
    name, T, spacing = scheduler_name(config), config['T'], config['spacing']
    S = config['sample_steps'] or T
    if spacing == 'quad':
        return 'it has no --spacing=quad'
    timesteps = make_timesteps(T, S, spacing)
    if spacing == 'trailing' and len(np.arange(T, 0, -T / S)) > S:  # in floats, as it counts them
        return f'along --spacing=trailing it takes {S + 1} steps in place of {S}, the last of them from t = -1'
    if name == 'DDIM' and not (
        all(t - s == T // S for s, t in pairwise(timesteps)) and timesteps[0] < T // S  # leading always
    ):
        return f'DDIMScheduler goes from t to t - {T // S}, which --spacing={spacing} does not in {S} steps of {T}'
    if name == 'DDPM' and timesteps[0] > 0 and config['var_type'] != 'fixedsmall':
        return f'DDPMScheduler adds noise in its last step with --spacing=trailing --var_type={config["var_type"]}'
    return None


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


FROM_PIPELINES = """\
from diffusers import DDIMPipeline, DDPMPipeline
{ways}"""

# With labels or a learned variance, which the pipelines do not pass on or take for channels of the image.
FROM_PARTS = """\
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained(PATH, subfolder='unet')
{labels}

def draw(scheduler, steps, **options):
    scheduler.set_timesteps(steps)
    x = torch.randn({images}, {channels}, {img_size}, {img_size})
    for t in scheduler.timesteps:
        with torch.no_grad():
            out = unet(x, t{with_labels}).sample
        if isinstance(scheduler, DDIMScheduler):
            out = out[:, :{channels}]  # what follows, if anything, is the variance
        x = scheduler.step(out, t, x, **options).prev_sample
    return (x / 2 + 0.5).clamp(0, 1)

{ways}"""

FROM_PIPELINE = """
# {flags}
pipeline = {name}Pipeline.from_pretrained(PATH)
pipeline({arguments}).images[0].save('{result}.png')"""

FROM_SCHEDULER = """
# {flags}
scheduler = {name}Scheduler.from_pretrained(PATH, subfolder='scheduler')
{result} = draw(scheduler, {arguments})"""


def drawing_code(config):
    """Python that draws with an export of a config, a dict of flags, what --sample draws, and in few steps of DDIM.

    Its comments name the flags that draw the same, and why there is no such code.
    """
    in_parts = config['num_classes'] or learns_variance(config['var_type'])
    few = {'sample_steps': min(50, config['T']), 'eta': 0.0}
    ways = [_way(config, in_parts)]
    if scheduler_name(config) == 'DDPM':
        ways.append(_way({**config, **few}, in_parts))
    if not in_parts:
        return FROM_PIPELINES.format(ways='\n'.join(ways))
    filled = {'labels': '', 'images': 4, 'with_labels': '', 'ways': '\n'.join(ways)}
    if n := config['num_classes']:
        y = f'y = torch.arange({n})  # one image of each label; {n} stands for no label\n'
        filled |= {'labels': y, 'images': 'len(y)', 'with_labels': ', class_labels=y'}
    return FROM_PARTS.format(**{**config, **filled})


def _way(config, in_parts):
    clip = '--clip_denoised' if config['clip_denoised'] else '--noclip_denoised'
    told = ' '.join(f'--{key}={config[key]}' for key in ('sample_steps', 'spacing', 'eta', 'var_type'))
    flags = f'--sample {told} {clip}' + ' --labels=all --guidance=1' * bool(config['num_classes'])
    if why := misfit(config):
        return f'\n# {flags}: not with diffusers, for {why}'
    steps, name = config['sample_steps'] or config['T'], scheduler_name(config)
    arguments = [str(steps)] if in_parts else ['batch_size=4', f'num_inference_steps={steps}']
    if name == 'DDIM':
        arguments += [f'eta={config["eta"]}', f'use_clipped_model_output={config["clip_denoised"]}']
    template = FROM_SCHEDULER if in_parts else FROM_PIPELINE
    return template.format(flags=flags, name=name, result=name.lower(), arguments=', '.join(arguments))


def scheduler_config(config):
    """The arguments of diffusers' scheduler for the sampler of a config, a dict of flags."""
    name = scheduler_name(config)
    others = set.union(*SCHEDULER_OWN.values()) - SCHEDULER_OWN[name]
    betas = None
    if config['schedule'] not in BETA_SCHEDULES.values():
        betas = make_betas(config['schedule'], config['beta_1'], config['beta_T'], config['T']).tolist()
    arguments = {
        '_class_name': f'{name}Scheduler',
        '_diffusers_version': VERSION,
        'num_train_timesteps': config['T'],
        'beta_start': config['beta_1'],
        'beta_end': config['beta_T'],
        'beta_schedule': 'linear' if betas else _theirs(BETA_SCHEDULES, config['schedule']),
        'trained_betas': betas,
        'variance_type': _theirs(VARIANCE_TYPES, config['var_type']),
        'clip_sample': config['clip_denoised'],
        'prediction_type': _theirs(PREDICTION_TYPES, config['mean_type']),
        'timestep_spacing': config['spacing'],
        **SCHEDULER_FIXED,
    }
    return {key: value for key, value in arguments.items() if key not in others}


def _theirs(table, ours):
    return next(theirs for theirs, name in table.items() if name == ours)


def read(folder):
    """(flags, state dict of `UNet` but for the time table) of a pipeline of diffusers, or of its unet alone.

    With labels, the last row of the embedding stands for no label, as `write` has it. Warns of what `_notes` tells.

    Raises CheckpointError where a part is damaged, or of a network or scheduler that is not here, naming what differs.
    """
    folder = Path(folder)
    unet = folder / 'unet' if (folder / 'unet').is_dir() else folder
    theirs = {**UNET_DEFAULTS, **_json(unet / 'config.json')}
    found = [path for path in (unet / f'{WEIGHTS}.safetensors', unet / f'{WEIGHTS}.bin') if path.exists()]
    if not found:
        raise CheckpointError(f'{unet} holds no {WEIGHTS}.safetensors or .bin')
    _, (weights, _) = formats.load(found[0])
    weights = {formats.current_name(key): value for key, value in weights.items()}
    told = {**formats.describe(weights, DIFFUSERS, found[0]), 'head_dim': theirs['attention_head_dim'] or 0}
    misfits = {arch: _differing(unet_config({**told, 'arch': arch}), theirs) for arch in ARCHS}
    told['arch'] = min(ARCHS, key=lambda arch: len(misfits[arch]))
    if misfits[told['arch']]:
        raise CheckpointError(f'{folder} is of another architecture: {"; ".join(misfits[told["arch"]])}')
    told |= {ours: theirs[key] for key, ours in SUGGESTED.items() if isinstance(theirs.get(key), int | float)}
    scheduler = folder / 'scheduler' if (folder / 'scheduler').is_dir() else folder
    # DDIMScheduler, which has no variance_type, adds the noise of fixedsmall where it is asked for some.
    told = {'var_type': 'fixedsmall', **told, **read_scheduler(scheduler / 'scheduler_config.json')}
    for note in _notes(told):
        logging.warning('%s: %s', folder, note)
    net = formats.convert(weights, told, DIFFUSERS, found[0])
    dense = net[f'{TIME_DENSE}.weight']
    if theirs['flip_sin_to_cos']:
        dense = torch.cat(dense.chunk(2, dim=1)[::-1], dim=1)
    if told['arch'] == 'pytorch_ddpm':  # sin and cos in turn
        dense = torch.stack(dense.chunk(2, dim=1), dim=2).flatten(1)
    net[f'{TIME_DENSE}.weight'] = dense
    return told, net


def _notes(told):
    """What a pipeline of diffusers is taken for if that can be doubted, and what its scheduler would draw otherwise."""
    name, spacing, notes = scheduler_name(told), told['spacing'], []
    if last := told['num_classes']:
        notes.append(f'labels 0 to {last - 1}; row {last} of its embedding is taken for no label')
    if name == 'DDIM' and told['clip_denoised']:
        notes.append('DDIMPipeline draws the same with use_clipped_model_output=True, which is not its default')
    if name == 'DDIM' and spacing != 'leading':
        notes.append(f'--sample_steps=S follows --spacing={spacing}, DDIMScheduler goes from t to t - T // S instead')
    if name == 'DDPM' and spacing == 'trailing' and told['var_type'] != 'fixedsmall':
        notes.append('DDPMScheduler would add noise in the last of --sample_steps with trailing timesteps')
    return notes


def read_scheduler(path):
    theirs = {**SCHEDULER_DEFAULTS, **_json(path)}
    name = theirs.get('_class_name', 'DDPMScheduler')
    try:
        if name not in ('DDPMScheduler', 'DDIMScheduler'):
            raise ValueError(f'{name} is not DDPMScheduler or DDIMScheduler')
        if misfits := _differing(SCHEDULER_FIXED, theirs):
            raise ValueError('; '.join(misfits))
        T, beta_1, beta_T = theirs['num_train_timesteps'], theirs['beta_start'], theirs['beta_end']
        schedule = BETA_SCHEDULES[theirs['beta_schedule']]
        if theirs['trained_betas'] is not None:
            T = len(theirs['trained_betas'])
            schedule, beta_1, beta_T = _known_schedule(theirs['trained_betas'])
        make_betas(schedule, beta_1, beta_T, T)
        told = {'T': T, 'schedule': schedule, 'beta_1': beta_1, 'beta_T': beta_T}
        told |= {'mean_type': PREDICTION_TYPES[theirs['prediction_type']], 'clip_denoised': theirs['clip_sample']}
        told |= {'spacing': known('timestep_spacing', theirs['timestep_spacing'], SPACINGS)}
        told |= {'sample_steps': 0, 'prior': 'standard'}
        if name == 'DDIMScheduler':
            return told | {'eta': 0.0}
        return told | {'eta': 1.0, 'var_type': VARIANCE_TYPES[theirs['variance_type']]}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f'{path}: no sampler here does this: {" ".join(map(str, error.args))}') from error


def _known_schedule(betas):
    """(schedule, beta_1, beta_T) of `SCHEDULES` whose betas these are. Raises ValueError where there is none."""
    betas = torch.tensor(betas, dtype=torch.float64)
    for schedule in SCHEDULES:
        for power in (1, 2):  # sqrt: its first and last are roots
            ends = (betas[0].item() ** power, betas[-1].item() ** power)
            try:
                if torch.allclose(make_betas(schedule, *ends, len(betas)), betas, rtol=1e-5, atol=0):
                    return schedule, *ends
            except ValueError:
                continue
    raise ValueError(f'trained_betas are of none of the schedules {", ".join(SCHEDULES)}')


def _differing(ours, theirs):
    return [f'{key} {theirs[key]} in place of {ours[key]}' for key in ours if theirs.get(key, ours[key]) != ours[key]]


def _json(path):
    try:
        value = json.loads(Path(path).read_text())
        if not isinstance(value, dict):
            raise ValueError('not an object')
    except FileNotFoundError as error:
        raise CheckpointError(f'{path} is missing: a diffusers pipeline has it') from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{path} cannot be read: {error}') from error
    return value


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
    parts = {'unet/config.json': unet, 'scheduler/scheduler_config.json': scheduler_config(flags)}
    parts['model_index.json'] = {
        '_class_name': f'{scheduler_name(flags)}Pipeline',
        '_diffusers_version': VERSION,
        'scheduler': ['diffusers', f'{scheduler_name(flags)}Scheduler'],
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
        (flags['mean_type'] not in PREDICTION_TYPES.values(), f'it has no --mean_type={flags["mean_type"]}'),
        (flags['var_type'] not in VARIANCE_TYPES.values(), f'it has no --var_type={flags["var_type"]}'),
        (flags['prior'] != 'standard', 'it starts from N(0, I): --prior=standard draws so'),
        (misfit(flags), f'{misfit(flags)}: --spacing=leading is its usual one'),
    ):
        if broken:
            raise ValueError(f'diffusers cannot represent this model: {why}')
    table = net.state_dict()[f'{TIME_TABLE}.weight'].cpu()
    if not torch.allclose(table, ARCHS[flags['arch']].time_table(*table.shape), atol=1e-3):
        raise ValueError(f'diffusers cannot represent this model: its time table is not that of --arch={flags["arch"]}')
