"""diffusers' schedulers: what their scheduler_config.json says, and where they draw otherwise than we do."""

from itertools import pairwise

import numpy as np
import torch

from interop.diffusers_json import VERSION, differences, read_json
from process.schedules import SCHEDULES, SPACINGS, known, make_betas, make_timesteps
from run.checkpoint import CheckpointError

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


def notes(told):
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
    theirs = {**SCHEDULER_DEFAULTS, **read_json(path)}
    name = theirs.get('_class_name', 'DDPMScheduler')
    try:
        if name not in ('DDPMScheduler', 'DDIMScheduler'):
            raise ValueError(f'{name} is not DDPMScheduler or DDIMScheduler')
        if misfits := differences(SCHEDULER_FIXED, theirs):
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
