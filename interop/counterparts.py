"""Lists the schedulers of diffusers, with the samplers of ours that draw the same.

A scheduler is named without the word at its end: DDPM for DDPMScheduler.
"""

import math
from typing import NamedTuple

from interop.diffusers_json import differences


class Scheduler(NamedTuple):
    """A scheduler of diffusers, or several that draw alike.

    settings: the keys of its config that decide what it draws, and what it assumes if a config leaves one out.
    samplers: pairs of some of its settings and the flags of ours that draw the same. aliases: value of a setting that
    is of another scheduler -> the value it takes in its place.
    """

    settings: dict
    samplers: tuple = ()
    aliases: dict = {}


PROCESS = {
    'num_train_timesteps': 1000,
    'beta_start': 1e-4,
    'beta_end': 0.02,
    'beta_schedule': 'linear',
    'trained_betas': None,
    'prediction_type': 'epsilon',
    'rescale_betas_zero_snr': False,
    'timestep_spacing': 'linspace',
    'steps_offset': 0,
}
THRESHOLDING = {'thresholding': False, 'sample_max_value': 1.0}
FIRST_ORDER = {
    **PROCESS, **THRESHOLDING, 'timestep_spacing': 'leading', 'clip_sample': True, 'clip_sample_range': 1.0,
}  # fmt: skip
SIGMAS = {**PROCESS, 'use_karras_sigmas': False, 'use_exponential_sigmas': False, 'use_beta_sigmas': False}
MULTISTEP = {**SIGMAS, **THRESHOLDING, 'use_flow_sigmas': False, 'final_sigmas_type': 'zero', 'solver_order': 2}
ALWAYS = 'always'  # in place of a list of all steps
ANCESTRAL, DETERMINISTIC = ({'order': 1, 'corrector': False, 'eta': eta} for eta in (1.0, 0.0))
MIDPOINT = {'solver_order': 2, 'solver_type': 'midpoint'}

# Those that ours draw the same as, in the order in which an export looks for one.
_DDPM = Scheduler({**FIRST_ORDER, 'variance_type': 'fixed_small'}, (({}, ANCESTRAL),))
_DDIM = Scheduler({**FIRST_ORDER, 'set_alpha_to_one': True}, (({}, DETERMINISTIC),))
_DPM = Scheduler(
    {
        **MULTISTEP, 'algorithm_type': 'dpmsolver++', 'solver_type': 'midpoint', 'use_lu_lambdas': False,
        'lambda_min_clipped': -math.inf,
    },
    (
        ({'algorithm_type': 'dpmsolver++', **MIDPOINT}, {**DETERMINISTIC, 'order': 2}),
        ({'algorithm_type': 'sde-dpmsolver++', **MIDPOINT}, {**ANCESTRAL, 'order': 2}),
        ({'algorithm_type': 'dpmsolver++', 'solver_order': 1}, DETERMINISTIC),
    ),
    {'deis': 'dpmsolver++', **dict.fromkeys(('logrho', 'bh1', 'bh2'), 'midpoint')},
)  # fmt: skip
_UNIPC = Scheduler(
    {**MULTISTEP, 'solver_type': 'bh2', 'predict_x0': True, 'disable_corrector': [], 'lower_order_final': True},
    tuple(
        (
            {'solver_order': order, 'solver_type': 'bh2', 'predict_x0': True, **disabled},
            {**DETERMINISTIC, 'order': order, 'corrector': not disabled},
        )
        for order in (1, 2, 3)
        for disabled in ({'disable_corrector': ALWAYS}, {})
    ),
    dict.fromkeys(('midpoint', 'heun', 'logrho'), 'bh2'),
)
_EULER = {'final_sigmas_type': 'zero', 'interpolation_type': 'linear', 'timestep_type': 'discrete'}
_LATENT = {'beta_start': 0.00085, 'beta_end': 0.012}
SCHEDULERS = {
    'DDPM': _DDPM,
    'DDIM': _DDIM,
    'DPMSolverMultistep': _DPM,
    'UniPCMultistep': _UNIPC,
    # read alone: they draw the same as one above, or as none of ours
    'DDPMParallel': _DDPM,
    'DDIMParallel': _DDIM,
    'EulerDiscrete': Scheduler({**SIGMAS, **_EULER}, (({}, DETERMINISTIC),)),
    'EulerAncestralDiscrete': Scheduler(PROCESS, (({}, ANCESTRAL),)),
    'PNDM': Scheduler({**PROCESS, 'timestep_spacing': 'leading'}),
    'HeunDiscrete': Scheduler({**SIGMAS, **_LATENT, 'clip_sample': False, 'clip_sample_range': 1.0}),
    'LMSDiscrete': Scheduler(SIGMAS),
    'KDPM2Discrete': Scheduler({**SIGMAS, **_LATENT}),
    'KDPM2AncestralDiscrete': Scheduler({**SIGMAS, **_LATENT}),
    'DPMSolverSDE': Scheduler({**SIGMAS, **_LATENT}),
    'DPMSolverSinglestep': Scheduler(MULTISTEP),
    'DEISMultistep': Scheduler(MULTISTEP),
    'SASolver': Scheduler(MULTISTEP),
}
MULTISTEPS = 'DPMSolverMultistep', 'UniPCMultistep'
FROM_ZERO = 'DDPM', 'DDPMParallel', 'DDIM', 'DDIMParallel'  # draw from an alphas_bar of 0, as ours does
# Settings that move the steps a little and leave the model as it is: their values with our sampler.
USUAL = {
    'set_alpha_to_one': True,
    'disable_corrector': [],
    'lower_order_final': True,
    'final_sigmas_type': 'zero',
    'lambda_min_clipped': -math.inf,
    'use_karras_sigmas': False,
    'use_exponential_sigmas': False,
    'use_beta_sigmas': False,
    'use_lu_lambdas': False,
    'interpolation_type': 'linear',
}
# Settings of another kind of model.
REFUSED = {'use_flow_sigmas': False, 'timestep_type': 'discrete'}
# Settings that no JSON can hold or that are younger than `VERSION`: an export leaves them out.
UNWRITTEN = {'lambda_min_clipped', 'use_exponential_sigmas', 'use_beta_sigmas', 'use_flow_sigmas'}


def found(flags):
    """Finds the scheduler that takes the steps of our sampler; returns its name and settings, or (None, {}).

    DDIM is told eta at each step, so that it stands for every eta below 1.
    """
    wanted = {**flags, 'eta': float(flags['eta'] == 1)}
    for name, scheduler in SCHEDULERS.items():
        for settings, ours in scheduler.samplers:
            if not differences(ours, wanted):
                return name, settings
    return None, {}
