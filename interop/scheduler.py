"""Translates between our flags and the scheduler_config.json of diffusers, and says when its schedulers draw otherwise.

Flags are a dict by name. Schedulers are named as in interop/counterparts.py.
"""

from itertools import pairwise

import numpy as np
import torch

from interop.counterparts import ALWAYS, ANCESTRAL, FROM_ZERO, MULTISTEPS, REFUSED, SCHEDULERS, UNWRITTEN, USUAL, found
from interop.diffusers_json import VERSION, differences, read_json
from process.schedules import SCHEDULES, known, make_betas, make_timesteps, spacing_for
from run.checkpoint import CheckpointError

# diffusers' name -> ours. If two of their names mean the same to us, the first is written: fixed_*_log are the same
# variances, kept as logarithms. Only DDPMScheduler knows sigmoid, so that its betas are written one by one.
BETA_SCHEDULES = {'linear': 'linear', 'scaled_linear': 'quad', 'squaredcos_cap_v2': 'cosine'}
READ_BETA_SCHEDULES = {**BETA_SCHEDULES, 'sigmoid': 'sigmoid'}
VARIANCE_TYPES = {
    'fixed_small': 'fixedsmall',
    'fixed_large': 'fixedlarge',
    'fixed_small_log': 'fixedsmall',
    'fixed_large_log': 'fixedlarge',
    'learned_range': 'learned_range',
}
PREDICTION_TYPES = {'epsilon': 'epsilon', 'sample': 'xstart', 'v_prediction': 'v'}
TIMESTEP_SPACINGS = {name: name for name in ('leading', 'linspace', 'trailing')}
ZERO_SNR = '_zero_snr'  # ends the names of the schedules that rescale_betas_zero_snr makes


# --- export


def spacing_of(flags):
    """Returns the spacing of our sampler, a key of `SPACINGS`."""
    return spacing_for(flags['order'], flags['spacing'])


def timesteps(flags):
    """Returns the timesteps of our sampler, ascending. Raises ValueError as `make_timesteps` does."""
    steps = flags['timesteps'] or flags['sample_steps'] or None
    return make_timesteps(_alphas_bar(flags), steps, spacing_of(flags))


def _alphas_bar(flags):
    return (1 - make_betas(flags['schedule'], flags['beta_1'], flags['beta_T'], flags['T'])).cumprod(0)


def misfit(flags):
    """Says why diffusers draws something else than our sampler, and what it does draw; None if it draws the same.

    Raises ValueError as `make_timesteps` does.
    """
    (name, _), T, spacing, told = found(flags), flags['T'], spacing_of(flags), flags['timesteps']
    S = flags['sample_steps'] or T
    if name is None:
        return f'none of its schedulers has --order={flags["order"]}: --order=2 is one that it has'
    if spacing not in TIMESTEP_SPACINGS and not told:
        return f'it has no --spacing={spacing}: --spacing=leading is its usual one'
    alphas_bar, chain = _alphas_bar(flags), timesteps(flags)
    counts = name in ('DDPM', 'DDIM') and spacing == 'trailing' and not told
    gaps = {t - s for s, t in pairwise(chain)}
    for broken, why in (
        (flags['eps_scale'] != 1, f'it has no --eps_scale={flags["eps_scale"]}: --eps_scale=1 draws so'),
        (
            name != 'DDIM' and 0 < flags['eta'] < 1,
            f'its steps of --order={flags["order"]} have no --eta={flags["eta"]}: --eta=0 or --order=1 draws so',
        ),
        (
            counts and len(np.arange(T, 0, -T / S)) > S,  # diffusers counts them in floats
            f'along --spacing=trailing it takes {S + 1} steps in place of {S}, the last of them from t = -1: '
            '--spacing=leading is its usual one',
        ),
        (
            name == 'DDIM' and told,
            f'DDIMScheduler cannot be told --timesteps: {"--eta=1" if flags["eta"] else "--order=2"} can, or use '
            '--sample_steps',
        ),
        (
            name == 'DDIM' and (gaps - {T // S} or chain[0] >= T // S),  # never so with leading
            f'DDIMScheduler goes from t to t - {T // S}, which --spacing={spacing} does not in {S} steps of {T}: '
            '--spacing=leading is its usual one',
        ),
        (
            name == 'DDPM' and chain[0] > 0 and flags['var_type'] != 'fixedsmall',
            f'DDPMScheduler adds noise in its last step, from t = {chain[0]}, with --var_type={flags["var_type"]}: '
            '--var_type=fixedsmall or a last step from t = 0 draws so',
        ),
        (
            name in MULTISTEPS and alphas_bar[chain[-1]] == 0,
            f'{name}Scheduler cannot begin at t = {chain[-1]}, where nothing is left of the image: --order=1 can, '
            'without --corrector',
        ),
    ):
        if broken:
            return why
    return None


def arguments(flags):
    """Gives the content of scheduler_config.json for our sampler, as a dict."""
    (name, settings), base = found(flags), flags['schedule'].removesuffix(ZERO_SNR)
    usual, betas = SCHEDULERS[name].settings, None
    if base not in BETA_SCHEDULES.values():
        betas = make_betas(flags['schedule'], flags['beta_1'], flags['beta_T'], flags['T']).tolist()
    ours = {
        'num_train_timesteps': flags['T'],
        'beta_start': flags['beta_1'],
        'beta_end': flags['beta_T'],
        'beta_schedule': 'linear' if betas else _theirs(BETA_SCHEDULES, base),
        'trained_betas': betas,
        'rescale_betas_zero_snr': base != flags['schedule'],
        'variance_type': _theirs(VARIANCE_TYPES, flags['var_type']),
        # A threshold of at most 1 is one of 1, whatever the quantile of x_0 is: thresholding clips to [-1, 1].
        'clip_sample' if 'clip_sample' in usual else 'thresholding': flags['clip_denoised'],
        'prediction_type': _theirs(PREDICTION_TYPES, flags['mean_type']),
        'timestep_spacing': TIMESTEP_SPACINGS.get(spacing_of(flags), 'leading'),
        **settings,
    }
    if 'disable_corrector' in settings:
        ours['disable_corrector'] = list(range(flags['T']))
    written = {key: ours.get(key, value) for key, value in usual.items() if key not in UNWRITTEN}
    return {'_class_name': f'{name}Scheduler', '_diffusers_version': VERSION, **written}


def _theirs(table, ours):
    return next(theirs for theirs, name in table.items() if name == ours)


# --- import


def read(path):
    """Reads a scheduler_config.json; returns (flags, notes). The flags are those of the process and of a sampler.

    The sampler is the one of ours that draws the same, or ancestral sampling if none does. notes: where in doubt what
    the scheduler does, or does otherwise than our sampler, in words.

    Raises CheckpointError, with the reason, if no model here can have this process or be drawn from like this.
    """
    said = read_json(path)
    try:
        name = known('_class_name', said.get('_class_name', 'DDPMScheduler').removesuffix('Scheduler'), SCHEDULERS)
        scheduler = SCHEDULERS[name]
        theirs = {key: said.get(key, value) for key, value in scheduler.settings.items()}
        theirs = {key: scheduler.aliases.get(v, v) if isinstance(v, str) else v for key, v in theirs.items()}
        if misfits := differences(REFUSED, theirs):
            raise ValueError(f'{"; ".join(misfits)} is of another kind of model')
        flags = {**_process(theirs), 'clip_denoised': _clips(theirs), 'sample_steps': 0, 'timesteps': []}
        flags |= {'spacing': _ours(TIMESTEP_SPACINGS, 'timestep_spacing', theirs), 'eps_scale': 1.0}
        flags['prior'] = 'standard'
        if 'variance_type' in theirs:
            flags['var_type'] = _ours(VARIANCE_TYPES, 'variance_type', theirs)
        disabled = theirs.get('disable_corrector')
        if disabled and set(range(flags['T'] - 1)) <= set(disabled):
            theirs['disable_corrector'] = ALWAYS
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f'{path}: no sampler here does this: {" ".join(map(str, error.args))}') from error
    for settings, sampler in scheduler.samplers:
        if not differences(settings, theirs):
            unusual = differences({key: value for key, value in USUAL.items() if key not in settings}, theirs)
            return {**flags, **sampler}, _notes(name, theirs, flags, unusual)
    return {**flags, **ANCESTRAL}, [_stand_in(name, theirs)]


def _ours(table, key, theirs):
    """Returns our name for a setting of theirs. Raises ValueError if there is none."""
    return table[known(key, theirs[key], table)]


def _process(theirs):
    """Returns the flags of the process that a config describes. Raises ValueError if none of ours is it."""
    T, ends, betas = theirs['num_train_timesteps'], (theirs['beta_start'], theirs['beta_end']), theirs['trained_betas']
    if betas is None:
        schedule = _ours(READ_BETA_SCHEDULES, 'beta_schedule', theirs)
    else:
        T, (schedule, *ends) = len(betas), _known_schedule(betas)
    mean_type = _ours(PREDICTION_TYPES, 'prediction_type', theirs)
    if theirs['rescale_betas_zero_snr']:
        if mean_type == 'epsilon':
            raise ValueError(
                'prediction_type epsilon gives no x_0 from the noise alone that rescale_betas_zero_snr ends in'
            )
        schedule = known('schedule', f'{schedule}{ZERO_SNR}', SCHEDULES)
    make_betas(schedule, *ends, T)
    return {'T': T, 'schedule': schedule, 'beta_1': ends[0], 'beta_T': ends[1], 'mean_type': mean_type}


def _clips(theirs):
    """Returns whether x_0 is clipped to [-1, 1]. Raises ValueError if it is limited in another way."""
    limits = {'thresholding': 'sample_max_value', 'clip_sample': 'clip_sample_range'}
    for key, limit in limits.items():
        if theirs.get(key):
            if theirs[limit] != 1:
                raise ValueError(f'{key} with {limit} {theirs[limit]} in place of 1, to which our sampler clips x_0')
            return True
    return False


def _known_schedule(betas):
    """Finds the schedule that has these betas; returns (schedule, beta_1, beta_T). Raises ValueError if none has."""
    betas = torch.tensor(betas, dtype=torch.float64)
    first, last = (betas[0].item(), betas[-1].item()) if len(betas) else (0, 0)
    beyond = (last - first) / (1 / torch.sigmoid(torch.tensor(-6.0, dtype=torch.float64)).item() - 2)
    # The ends of most schedules are beta_1 and beta_T, those of sqrt their roots; sigmoid starts and stops within them.
    for ends in ((first, last), (first**2, last**2), (first - beyond, last + beyond)):
        for schedule in SCHEDULES:
            try:
                if torch.allclose(make_betas(schedule, *ends, len(betas)), betas, rtol=1e-5, atol=0):
                    return schedule, *ends
            except ValueError:
                continue
    raise ValueError(f'trained_betas are of none of the schedules {", ".join(SCHEDULES)}')


def _stand_in(name, theirs):
    """Says what is drawn in place of a scheduler that draws as no sampler of ours does."""
    decisive = dict.fromkeys(key for settings, _ in SCHEDULERS[name].samplers for key in settings)
    detail = ', '.join(f'{key} {theirs[key]}' for key in decisive)
    return (
        f'{name}Scheduler{f" with {detail}" if detail else ""} has no counterpart here: --order=1 --eta=1 is used in '
        'its place, and --order=2 suits few steps'
    )


def _notes(name, theirs, flags, unusual):
    """Lists where a scheduler does otherwise than the sampler of ours that stands for it. unusual: those of `USUAL`."""
    spacing, offset = flags['spacing'], theirs['steps_offset']
    along = f'with --spacing={spacing} and S steps {name}Scheduler'
    leading, ddim, euler = spacing == 'leading', name.startswith('DDIM'), name.startswith('Euler')
    spaced = not any(theirs[key] for key in theirs if key.startswith('use_'))  # and not by Karras sigmas or the like
    multistep, plus = name in MULTISTEPS and spacing != 'trailing', f'{offset} + ' if offset else ''
    placed = f'{plus}r, ... {plus}S r, where r = T // (S + 1)' if leading else '(T - 1) / S, 2 (T - 1) / S ... rounded'
    noted = {
        f'{name}Scheduler has {"; ".join(unusual)}: each image differs slightly, the model does not': unusual,
        f'{along} takes the --timesteps {offset}, {plus}r, ... {plus}(S - 1) r, where r = T // S': (
            offset and leading and spaced and not multistep
        ),
        f'{along} leaves out t = 0 and takes the --timesteps {placed}': multistep and spaced,
        f'{along} starts from noise of variance 1 - alphas_bar and rounds no timestep': euler and not leading,
        f'{name}Scheduler begins at an alphas_bar of 2^-24 in place of 0: each image differs slightly': (
            theirs['rescale_betas_zero_snr'] and name not in FROM_ZERO
        ),
        'DDIMPipeline draws the same with use_clipped_model_output=True, which is not its default': (
            ddim and flags['clip_denoised']
        ),
        f'--sample_steps=S follows --spacing={spacing}, DDIMScheduler goes from t to t - T // S instead': (
            ddim and not leading
        ),
        'DDPMScheduler would add noise in the last of --sample_steps with trailing timesteps': (
            name.startswith('DDPM') and spacing == 'trailing' and flags['var_type'] != 'fixedsmall'
        ),
    }
    return [note for note, applies in noted.items() if applies]
