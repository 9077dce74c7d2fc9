"""Turn the steps of a sampler into rows of numbers: x_s = cx x_t + c_0 m_0 + c_1 m_1 + ... + std z.

m_0 is the x0_hat of this step, m_1 is the x0_hat of the step before it, and so on; z ~ N(0, I).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

from process.schedules import known


class VarType(NamedTuple):
    std: Callable  # (beta, sigma, beta_t) -> the std of a step at eta = 1 and v = 0
    slope: Callable | None = None  # (beta, sigma) -> b in log std^2 = a + b v; None if the network gives no v


# name -> the std of a step. beta = 1 - ab_t / ab_s is the variance of x_t given x_s. sigma is the std of the posterior.
# beta_t is what beta would be if every step were taken. Paper section 3.2: fixedlarge is optimal for x_0 ~ N(0, I),
# fixedsmall for a single x_0. learned: v is log std^2 of a step in the full chain, and a longer step has beta / beta_t
# times that variance. learned_range: the variance goes from sigma^2 at v = -1 to beta at v = 1 (Nichol and Dhariwal
# 2021, eq. 15, whose v goes from 0 to 1).
VAR_TYPES = {
    'fixedlarge': VarType(lambda beta, sigma, beta_t: beta.sqrt()),
    'fixedsmall': VarType(lambda beta, sigma, beta_t: sigma),
    'learned': VarType(lambda beta, sigma, beta_t: (beta / beta_t).sqrt(), lambda beta, sigma: torch.ones_like(beta)),
    'learned_range': VarType(
        lambda beta, sigma, beta_t: (beta.sqrt() * sigma).sqrt(), lambda beta, sigma: (beta / sigma**2).log() / 2
    ),
}


def learns_variance(var_type):
    """Return whether networks of this var_type output 2C channels, the second half v. Raise ValueError if unknown."""
    return VAR_TYPES[known('var_type', var_type, VAR_TYPES)].slope is not None


def step_table(alphas_bar, timesteps, eta=1.0, var_type='fixedsmall'):
    """x_s = c0 x0_hat + cx x_t + std z (paper eq. 7 at eta = 1; DDIM eq. 12), float64 [S, 3] of (c0, cx, std).

    alphas_bar: [T]. timesteps: S ascending timesteps t. Row i goes from timesteps[i] to s = timesteps[i - 1]. Row 0
    goes to the image, whose alphas_bar is 1, and adds no noise. Below eta = 1 the std is DDIM's sigma for every
    var_type. If the variance is learned, the std is the one at v = 0.
    """
    return posterior_table(alphas_bar, timesteps, eta, var_type)[:, :3]


def ends(alphas_bar, timesteps):
    """Return alphas_bar at the t and at the s of each step, both float64 [S]; the image has alphas_bar 1."""
    ab_t = alphas_bar[torch.as_tensor(list(timesteps))]
    return ab_t, F.pad(ab_t[:-1], (1, 0), value=1.0)


def posterior_table(alphas_bar, timesteps, eta, var_type):
    """Return `step_table` and log variances, float64 [S, 6] of (c0, cx, std, log sigma^2, a, b): log std^2 = a + b v.

    The step to the image adds no noise; its variance serves only the likelihood (paper eq. 13). Its sigma, and with it
    a fixed std, is copied from the step before, as in pytorch-ddpm and the authors' code.
    """
    var_type = VAR_TYPES[known('var_type', var_type, VAR_TYPES)]
    ab_t, ab_s = ends(alphas_bar, timesteps)
    beta = 1 - ab_t / ab_s
    beta_t = (1 - alphas_bar / F.pad(alphas_bar[:-1], (1, 0), value=1.0))[torch.as_tensor(list(timesteps))]
    sigma = eta * ((1 - ab_s) / (1 - ab_t) * beta).sqrt()
    cx = ((1 - ab_s - sigma**2).clamp(min=0) / (1 - ab_t)).sqrt()
    c0 = ab_s.sqrt() - ab_t.sqrt() * cx
    sigma[0] = sigma[1] if len(sigma) > 1 else beta[0].sqrt()
    std = var_type.std(beta, sigma, beta_t) if eta == 1 else sigma
    b = var_type.slope(beta, sigma) if eta == 1 and var_type.slope else torch.zeros_like(beta)
    a = torch.where((ab_s == 1) & (var_type.slope is None), sigma, std).log() * 2
    return torch.stack([c0, cx, std * (ab_s < 1), 2 * sigma.log(), a, b], dim=1)


# order -> function of (ab_t, ab_s, cx), all float64 [S], that returns c, float64 [S, columns]. ab_t and ab_s are
# alphas_bar at the t and the s of each step. c[:, j] is the weight in x_s of the x0_hat from j steps before. Row 0 is
# the step to the image. The last row is the step taken first: no x0_hat comes before it, so c[-1, 1:] must be 0. Each
# row adds up to sqrt(ab_s) - sqrt(ab_t) cx. Order 1 is DDPM (eta = 1) and DDIM (eta = 0).
SOLVERS = {1: lambda ab_t, ab_s, cx: (ab_s.sqrt() - ab_t.sqrt() * cx)[:, None]}


class Step(NamedTuple):
    """x_s = cx x_t + sum_j c[j] m_j + std z, one row. A learned variance multiplies std by exp(v slope / 2)."""

    cx: float
    c: list
    std: float
    slope: float


def solver_steps(alphas_bar, timesteps, eta=1.0, var_type='fixedsmall', order=1):
    """Return a `Step` for each of S ascending timesteps, the step to the image first, by an entry of `SOLVERS`.

    alphas_bar: float64 [T]. eta, var_type: as in `step_table`. Raise ValueError for an unknown order.
    """
    solve = SOLVERS[known('order', order, SOLVERS)]
    ab_t, ab_s = ends(alphas_bar, timesteps)
    _, cx, std, _, _, slope = posterior_table(alphas_bar, timesteps, eta, var_type).unbind(1)
    return [Step(*row) for row in zip(*(x.tolist() for x in (cx, solve(ab_t, ab_s, cx), std, slope)), strict=True)]
