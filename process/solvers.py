"""Turn the steps of a sampler into rows of numbers: x_s = cx x_t + c_0 m_0 + c_1 m_1 + ... + std z.

m_0 is the x0_hat of this step, m_1 is the x0_hat of the step before it, and so on; z ~ N(0, I).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F

from process.schedules import betas_of, known


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
    a fixed std, is copied from the step before, as in pytorch-ddpm and the authors' code, or beta's if there is none.
    """
    var_type = VAR_TYPES[known('var_type', var_type, VAR_TYPES)]
    ab_t, ab_s = ends(alphas_bar, timesteps)
    beta, beta_t = betas_of(ab_t), betas_of(alphas_bar)[torch.as_tensor(list(timesteps))]
    sigma = eta * ((1 - ab_s) / (1 - ab_t) * beta).sqrt()
    cx = ((1 - ab_s - sigma**2).clamp(min=0) / (1 - ab_t)).sqrt()
    c0 = ab_s.sqrt() - ab_t.sqrt() * cx
    sigma[0] = sigma[1] if len(sigma) > 1 else beta[0].sqrt()
    std = var_type.std(beta, sigma, beta_t) if eta == 1 else sigma
    b = var_type.slope(beta, sigma) if eta == 1 and var_type.slope else torch.zeros_like(beta)
    a = torch.where((ab_s == 1) & (var_type.slope is None), sigma, std).log() * 2
    return torch.stack([c0, cx, std * (ab_s < 1), 2 * sigma.log(), a, b], dim=1)


def _one_step(ab_t, ab_s, cx):
    return (ab_s.sqrt() - ab_t.sqrt() * cx)[:, None]


def _unipc(ab_t, ab_s, cx, order, corrector=False):
    """Return the weights of UniPC (Zhao et al. 2023) with B(h) = e^h - 1, for the x0_hat prediction: its bh2.

    The order falls to 1 at both ends: step k, where 0 ends at the image, has only the predictions of S - k steps, and
    takes at most k + 1 of them, since the last steps are long in lambda = log(alpha / sigma). The corrector of a step
    uses the prediction at its end. That is the next step's own, so the correction is part of the next row.

    Orders 1 and 2 without corrector are right for every eta, as DPM-Solver++ 2M and SDE-2M (Lu et al. 2022).
    """
    C, (lambda_t, lambda_s) = _one_step(ab_t, ab_s, cx)[:, 0], (torch.logit(ab) / 2 for ab in (ab_t, ab_s))
    c = F.pad(C[:, None], (0, order - 1 + corrector))
    usable = int(lambda_t.isfinite().sum())  # all, unless the chain ends in noise alone
    for k in range(len(C)):
        p = max(1, min(order, usable - k, k + 1))
        h = lambda_s[k] - lambda_t[k]
        r = torch.cat([(lambda_t[k + 1 : k + p] - lambda_t[k]) / h, torch.ones_like(h)[None]])  # [p]
        R = r ** torch.arange(p)[:, None]
        integrals = _integrals(-h, p)
        predicting = torch.linalg.solve(R[:-1, :-1], integrals[:-1]) if p > 2 else torch.full((p - 1,), 0.5)
        weights = C[k] * predicting.to(r) / r[:-1]
        c[k, 1:p] += weights
        c[k, 0] -= weights.sum()
        if corrector and k:
            correcting = torch.linalg.solve(R, integrals) if p > 1 else torch.full_like(r, 0.5)
            changes = C[k] * correcting / r  # of m_1 to m_{p - 1}, and of the prediction at the end
            changes[:-1] -= weights
            c[k - 1, 0] += cx[k - 1] * changes[-1]
            c[k - 1, 1] -= cx[k - 1] * changes.sum()
            c[k - 1, 2 : p + 1] += cx[k - 1] * changes[:-1]
    return c


def _integrals(h, p):
    """Return the right side of UniPC's equations, float64 [p]: i! psi_i / (e^h - 1), psi_i = psi_{i-1} / h - 1 / i!."""
    values, psi = [], torch.expm1(h)
    for i in range(1, p + 1):
        psi = psi / h - 1 / math.factorial(i)
        values.append(math.factorial(i) * psi / torch.expm1(h))
    return torch.stack(values)


class Solver(NamedTuple):
    """weights: function of (ab_t, ab_s, cx), all float64 [S], that returns c, float64 [S, columns].

    ab_t and ab_s are alphas_bar at the t and the s of each step. c[:, j] is the weight in x_s of the x0_hat from j
    steps before. Row 0 is the step to the image. The last row is the step taken first: no x0_hat comes before it, so
    c[-1, 1:] must be 0. Each row adds up to sqrt(ab_s) - sqrt(ab_t) cx. corrected: the same with --corrector, or None.
    of_sde: whether the weights are right for eta > 0.
    """

    weights: Callable
    corrected: Callable | None = None
    of_sde: bool = False


# --order -> Solver. Order 1 is DDPM (eta = 1) and DDIM (eta = 0), order 2 DPM-Solver++ 2M, and both UniPC if corrected.
SOLVERS = {
    1: Solver(_one_step, partial(_unipc, order=1, corrector=True), of_sde=True),
    2: Solver(partial(_unipc, order=2), partial(_unipc, order=2, corrector=True), of_sde=True),
    3: Solver(partial(_unipc, order=3), partial(_unipc, order=3, corrector=True)),
}


class Step(NamedTuple):
    """x_s = cx x_t + sum_j c[j] m_j + std z, one row. A learned variance multiplies std by exp(v slope / 2)."""

    cx: float
    c: list
    std: float
    slope: float


class Taken(NamedTuple):
    """A step as it was taken: x_s = cx x_t + c_0 x0_hats[0] + c_1 x0_hats[1] + ... + std z, by the numbers of `row`.

    t, s: the noisings in x_t and x_s. x0_hats: the newest first, as many as there are, at most one for each c. std:
    that of `row` or, if the variance is learned, a tensor in the shape of x_t. z: None if the step adds no noise.
    """

    t: int
    s: int
    row: Step
    x_t: torch.Tensor
    x0_hats: tuple
    std: float | torch.Tensor
    z: torch.Tensor | None
    x_s: torch.Tensor


def _weights(order, corrector, eta):
    """Return the function of a `Solver`. Raise ValueError if there is none for this corrector and eta."""
    solver = SOLVERS[known('order', order, SOLVERS)]
    if corrector and not solver.corrected:
        raise ValueError(f'order {order} has no corrector')
    if eta and (corrector or not solver.of_sde):
        what = 'a corrector' if corrector else f'order {order}'
        raise ValueError(f'{what} is for eta = 0, where a step adds no noise, not for eta = {eta:g}')
    return solver.corrected if corrector else solver.weights


def solver_steps(alphas_bar, timesteps, eta=1.0, var_type='fixedsmall', order=1, corrector=False):
    """Return a `Step` for each of S ascending timesteps, the step to the image first, by an entry of `SOLVERS`.

    alphas_bar: float64 [T]. eta, var_type: as in `step_table`, but above order 1 the std is DDIM's sigma for every
    var_type. corrector: whether each prediction also corrects the step that led to it.

    Raise ValueError for an unknown order, and if the solver has no corrector or is not for this eta.
    """
    weights, (ab_t, ab_s) = _weights(order, corrector, eta), ends(alphas_bar, timesteps)
    table = posterior_table(alphas_bar, timesteps, eta, var_type if order == 1 else 'fixedsmall')
    _, cx, std, _, _, slope = table.unbind(1)
    return [Step(*row) for row in zip(*(x.tolist() for x in (cx, weights(ab_t, ab_s, cx), std, slope)), strict=True)]


def encoding_steps(alphas_bar, timesteps, order=1, corrector=False):
    """Return the `Step`s up a chain, from each of S ascending timesteps but the last to the next, the last step first.

    They solve the ODE that DDIM solves at eta = 0 the other way (Song et al. 2021, section 4.3). Raise ValueError as
    `solver_steps` does.
    """
    ab = alphas_bar[torch.as_tensor(list(timesteps))].flip(0)
    ab_t, ab_s = ab[1:], ab[:-1]
    cx = ((1 - ab_s) / (1 - ab_t)).sqrt()
    c = _weights(order, corrector, eta=0)(ab_t, ab_s, cx)
    return [Step(*row, std=0.0, slope=0.0) for row in zip(cx.tolist(), c.tolist(), strict=True)]
