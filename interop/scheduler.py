"""Translates between our flags and the scheduler_config.json of diffusers, and says when its schedulers draw otherwise.

Flags are a dict by name.
"""

from itertools import pairwise

import numpy as np
import torch

from interop.diffusers_json import VERSION, differences, read_json
from process.schedules import SCHEDULES, SPACINGS, known, make_betas, make_timesteps
from run.checkpoint import CheckpointError

# diffusers' name -> ours. If two of their names mean the same to us, the first is written: fixed_*_log are the same
# variances, kept as logarithms.
BETA_SCHEDULES = {'linear': 'linear', 'scaled_linear': 'quad', 'squaredcos_cap_v2': 'cosine', 'sigmoid': 'sigmoid'}
VARIANCE_TYPES = {
    'fixed_small': 'fixedsmall',
    'fixed_large': 'fixedlarge',
    'fixed_small_log': 'fixedsmall',
    'fixed_large_log': 'fixedlarge',
    'learned_range': 'learned_range',
}
PREDICTION_TYPES = {'epsilon': 'epsilon', 'sample': 'xstart', 'v_prediction': 'v'}
# What diffusers assumes if a config leaves it out.
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
# Values that a config must have, because our sampler knows no others.
SCHEDULER_FIXED = {
    'thresholding': False,
    'clip_sample_range': 1.0,
    'steps_offset': 0,
    'rescale_betas_zero_snr': False,
    'set_alpha_to_one': True,
}
# The arguments that only one of the schedulers takes.
SCHEDULER_OWN = {'DDPM': {'variance_type'}, 'DDIM': {'set_alpha_to_one'}}


def name_of(flags):
    """Names the scheduler of diffusers that takes the same steps as our sampler: a key of `SCHEDULER_OWN`."""
    return 'DDPM' if flags['eta'] == 1 else 'DDIM'


def misfit(flags):
    """Says why diffusers' scheduler draws something else along our sampler's timesteps; None if it draws the same.

    Raises ValueError as `make_timesteps` does.
    """
    name, T, spacing = name_of(flags), flags['T'], flags['spacing']
    S = flags['sample_steps'] or T
    if spacing not in ('leading', 'linspace', 'trailing'):
        return f'it has no --spacing={spacing}'
    if flags.get('order', 1) != 1 or flags.get('corrector'):
        return f'its steps are of order 1, not --order={flags["order"]}'
    betas = make_betas(flags['schedule'], flags['beta_1'], flags['beta_T'], T)
    timesteps = make_timesteps((1 - betas).cumprod(0), S, spacing)
    if spacing == 'trailing' and len(np.arange(T, 0, -T / S)) > S:  # diffusers counts them in floats
        return f'along --spacing=trailing it takes {S + 1} steps in place of {S}, the last of them from t = -1'
    if name == 'DDIM' and not (
        all(t - s == T // S for s, t in pairwise(timesteps)) and timesteps[0] < T // S  # always so with leading
    ):
        return f'DDIMScheduler goes from t to t - {T // S}, which --spacing={spacing} does not in {S} steps of {T}'
    if name == 'DDPM' and timesteps[0] > 0 and flags['var_type'] != 'fixedsmall':
        return f'DDPMScheduler adds noise in its last step with --spacing=trailing --var_type={flags["var_type"]}'
    return None


def arguments(flags):
    """Gives the content of scheduler_config.json for our sampler, as a dict."""
    name = name_of(flags)
    others = set.union(*SCHEDULER_OWN.values()) - SCHEDULER_OWN[name]
    betas = None
    if flags['schedule'] not in BETA_SCHEDULES.values():
        betas = make_betas(flags['schedule'], flags['beta_1'], flags['beta_T'], flags['T']).tolist()
    every = {
        '_class_name': f'{name}Scheduler',
        '_diffusers_version': VERSION,
        'num_train_timesteps': flags['T'],
        'beta_start': flags['beta_1'],
        'beta_end': flags['beta_T'],
        'beta_schedule': 'linear' if betas else _theirs(BETA_SCHEDULES, flags['schedule']),
        'trained_betas': betas,
        'variance_type': _theirs(VARIANCE_TYPES, flags['var_type']),
        'clip_sample': flags['clip_denoised'],
        'prediction_type': _theirs(PREDICTION_TYPES, flags['mean_type']),
        'timestep_spacing': flags['spacing'],
        **SCHEDULER_FIXED,
    }
    return {key: value for key, value in every.items() if key not in others}


def _theirs(table, ours):
    return next(theirs for theirs, name in table.items() if name == ours)


def notes(flags):
    """Lists, in words, what a pipeline of diffusers is taken for if it is in doubt, and where its scheduler differs."""
    name, spacing, found = name_of(flags), flags['spacing'], []
    if last := flags['num_classes']:
        found.append(f'labels 0 to {last - 1}; row {last} of its embedding is taken for no label')
    if name == 'DDIM' and flags['clip_denoised']:
        found.append('DDIMPipeline draws the same with use_clipped_model_output=True, which is not its default')
    if name == 'DDIM' and spacing != 'leading':
        found.append(f'--sample_steps=S follows --spacing={spacing}, DDIMScheduler goes from t to t - T // S instead')
    if name == 'DDPM' and spacing == 'trailing' and flags['var_type'] != 'fixedsmall':
        found.append('DDPMScheduler would add noise in the last of --sample_steps with trailing timesteps')
    return found


def read(path):
    """Reads the flags in a scheduler_config.json. Raises CheckpointError if our sampler does not do what it says."""
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
        flags = {'T': T, 'schedule': schedule, 'beta_1': beta_1, 'beta_T': beta_T}
        flags |= {'mean_type': PREDICTION_TYPES[theirs['prediction_type']], 'clip_denoised': theirs['clip_sample']}
        flags |= {'spacing': known('timestep_spacing', theirs['timestep_spacing'], SPACINGS)}
        flags |= {'sample_steps': 0, 'prior': 'standard'}
        if name == 'DDIMScheduler':
            return flags | {'eta': 0.0}
        return flags | {'eta': 1.0, 'var_type': VARIANCE_TYPES[theirs['variance_type']]}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f'{path}: no sampler here does this: {" ".join(map(str, error.args))}') from error


def _known_schedule(betas):
    """Finds the schedule that has these betas; returns (schedule, beta_1, beta_T). Raises ValueError if none has."""
    betas = torch.tensor(betas, dtype=torch.float64)
    for schedule in SCHEDULES:
        for power in (1, 2):  # beta_1 and beta_T of the schedule sqrt are the squares of its ends
            ends = (betas[0].item() ** power, betas[-1].item() ** power)
            try:
                if torch.allclose(make_betas(schedule, *ends, len(betas)), betas, rtol=1e-5, atol=0):
                    return schedule, *ends
            except ValueError:
                continue
    raise ValueError(f'trained_betas are of none of the schedules {", ".join(SCHEDULES)}')
