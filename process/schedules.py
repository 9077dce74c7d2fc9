"""Make the two arrays that a diffusion starts from: the betas of its steps, and the timesteps that a sampler takes.

Each comes from a registry of named functions. The keys are the choices of --schedule and --spacing.
"""

import numpy as np
import torch
from torch.nn import functional as F


def _warmup(beta_1, beta_T, T, fraction):
    betas = torch.full((T,), beta_T, dtype=torch.float64)
    n = int(T * fraction)
    betas[:n] = torch.linspace(beta_1, beta_T, n, dtype=torch.float64)
    return betas


def _cosine(T, s=8e-3, largest=0.999):
    f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + s) / (1 + s) * torch.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=largest)


def _line(first, last, T):
    return torch.linspace(first, last, T, dtype=torch.float64)


def _zero_snr(betas):
    alpha = (1 - betas).cumprod(0).sqrt()
    ends = alpha[0], alpha[-1]
    alpha = (alpha - ends[1]) * ends[0] / (ends[0] - ends[1]).clamp(min=1e-300)  # from the same first value to 0
    return betas_of(alpha**2)


def betas_of(alphas_bar):
    """Return the variance of x_t given x_s for each step of a chain, 1 - ab_t / ab_s; the image has alphas_bar 1."""
    return 1 - alphas_bar / F.pad(alphas_bar[:-1], (1, 0), value=1.0)


# name -> function of (beta_1, beta_T, T) that returns float64 betas [T].
# linear, quad, warmup10, warmup50, const, jsd: hojonathanho/diffusion. sqrt: latent diffusion, whose "linear" is
# our quad and whose "sqrt_linear" is our linear. cosine: Nichol and Dhariwal 2021, eq. 17. sigmoid: the 2-D s_curve
# tutorial. *_zero_snr: the same, rescaled to leave nothing of the image in x_T (Lin et al. 2023, algorithm 1).
SCHEDULES = {
    'linear': _line,
    'quad': lambda beta_1, beta_T, T: _line(beta_1**0.5, beta_T**0.5, T) ** 2,
    'warmup10': lambda beta_1, beta_T, T: _warmup(beta_1, beta_T, T, 0.1),
    'warmup50': lambda beta_1, beta_T, T: _warmup(beta_1, beta_T, T, 0.5),
    'const': lambda beta_1, beta_T, T: _warmup(beta_1, beta_T, T, 0.0),
    'jsd': lambda beta_1, beta_T, T: 1 / _line(T, 1, T),
    'cosine': lambda beta_1, beta_T, T: _cosine(T),
    'sqrt': lambda beta_1, beta_T, T: _line(beta_1, beta_T, T).sqrt(),
    'sigmoid': lambda beta_1, beta_T, T: beta_1 + (beta_T - beta_1) * torch.sigmoid(_line(-6, 6, T)),
    'linear_zero_snr': lambda beta_1, beta_T, T: _zero_snr(_line(beta_1, beta_T, T)),
    'quad_zero_snr': lambda beta_1, beta_T, T: _zero_snr(_line(beta_1**0.5, beta_T**0.5, T) ** 2),
    'cosine_zero_snr': lambda beta_1, beta_T, T: _zero_snr(_cosine(T)),
}


def make_betas(schedule, beta_1, beta_T, T):
    """Return the forward-process variances beta_1..beta_T (paper section 2), float64 [T].

    Latent diffusion's "linear" is `quad` here and its "sqrt_linear" is `linear`. cosine and jsd depend only on T.

    Raise ValueError if T < 1, a beta is outside (0, 1], or the image is lost (alphas_bar = 0) before the last step.
    """
    if T < 1:
        raise ValueError(f'T must be at least 1, not {T}')
    for name, beta in (('beta_1', beta_1), ('beta_T', beta_T)):
        if not 0 < beta <= 1:
            raise ValueError(f'{name} must be in (0, 1], not {beta}')
    betas = SCHEDULES[known('schedule', schedule, SCHEDULES)](beta_1, beta_T, T)
    if betas[0] < 1e-15 or not (1 - betas[:-1]).prod() > 0:  # NaN if a schedule divides by it
        raise ValueError(
            f'schedule {schedule} from {beta_1} to {beta_T} must start above 1e-15, '
            f'and alphas_bar may be 0 only at T = {T}'
        )
    return betas


def _logsnr(alphas_bar, S):
    snr = torch.logit(alphas_bar).numpy()  # log(alpha^2 / sigma^2), falling
    snr = snr[np.isfinite(snr)] if len(snr) > 1 else np.zeros(1)  # the last may be -inf, noise alone
    return np.interp(np.linspace(snr[-1], snr[0], S), snr[::-1], np.arange(len(snr))[::-1]).round()


# name -> function of (alphas_bar [T], S) that returns S timesteps, which may repeat. leading and quad: ermongroup/ddim.
# leading, linspace, trailing: diffusers' timestep_spacing, rounded as it rounds. [:S] because arange may add a -1.
# quad_full: quad up to T - 1, where quad stops at 0.8 T. logsnr: uniform in the log of the signal-to-noise ratio.
SPACINGS = {
    'leading': lambda alphas_bar, S: np.arange(S) * (len(alphas_bar) // S),
    'linspace': lambda alphas_bar, S: np.linspace(0, len(alphas_bar) - 1, S).round(),
    'trailing': lambda alphas_bar, S: np.arange(len(alphas_bar), 0, -len(alphas_bar) / S).round()[:S] - 1,
    'quad': lambda alphas_bar, S: np.linspace(0, np.sqrt(0.8 * len(alphas_bar)), S) ** 2,
    'quad_full': lambda alphas_bar, S: (np.linspace(0, np.sqrt(len(alphas_bar) - 1), S) ** 2).round(),
    'logsnr': _logsnr,
}


def spacing_for(order, spacing='auto'):
    """Return `spacing`. For auto it is leading, and trailing above order 1, which draws best so (docs/sampling.md)."""
    if spacing != 'auto':
        return spacing
    return 'leading' if order == 1 else 'trailing'


def make_timesteps(alphas_bar, steps=None, spacing='leading'):
    """Return the timesteps of a sampler, ascending and distinct.

    alphas_bar: float64 [T]. steps: None for all T, an int S for S timesteps placed by `spacing`, or the timesteps
    themselves in any order. If `spacing` repeats a timestep, as quad does near 0, fewer than S remain: a step from t to
    t changes nothing.

    Raise ValueError if S is outside 1..T, or if a given timestep repeats or is outside 0..T-1.
    """
    known('spacing', spacing, SPACINGS)
    T = len(alphas_bar)
    if steps is None:
        steps = range(T)
    elif isinstance(steps, int):
        if not 1 <= steps <= T:
            raise ValueError(f'the number of sampling steps must be between 1 and T = {T}, not {steps}')
        steps = set(SPACINGS[spacing](alphas_bar, steps).astype(int).tolist())
    timesteps = sorted(int(t) for t in steps)
    if not timesteps or len(set(timesteps)) < len(timesteps) or timesteps[0] < 0 or timesteps[-1] >= T:
        raise ValueError(f'sampling timesteps must be distinct and between 0 and T - 1 = {T - 1}, not {timesteps}')
    return timesteps


def known(flag, name, registry):
    """Return `name`. Raise ValueError, naming the flag, if the registry has no such key."""
    if name not in registry:
        raise ValueError(f'{flag} must be one of {", ".join(map(str, registry))}, not {name}')
    return name
