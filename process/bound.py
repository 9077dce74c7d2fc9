"""Compute the terms of the variational bound -log p(x_0) <= L_T + sum_t L_{t-1} (Ho et al. 2020, eq. 5)."""

import math

import torch


def normal_kl(mean_1, log_var_1, mean_2, log_var_2):
    """KL(N(mean_1, var_1) || N(mean_2, var_2)) for each element, in nats; the arguments broadcast."""
    ratio = log_var_1 - log_var_2
    return 0.5 * (torch.expm1(ratio) - ratio + (mean_1 - mean_2) ** 2 * torch.exp(-log_var_2))


def discretised_log_likelihood(x_0, mean, log_var):
    """log p(x_0) of each pixel under the discretised N(mean, var) (paper eq. 13), in nats.

    x_0: 8-bit pixels in [-1, 1]. Each is the middle of a bin 2/255 wide; the bins of 0 and 255 reach to infinity. The
    arguments broadcast. The result and its gradient are finite, however far a pixel is from the mean.
    """
    std = torch.exp(0.5 * log_var)
    x = x_0 - mean

    def log_cdf(bound):
        return torch.special.log_ndtr(bound / std)

    # Mirror the bin if it lies above the mean: differences of the cdf are exact only below the mean.
    upper, lower = log_cdf(1 / 255 - x.abs()), log_cdf(-1 / 255 - x.abs())
    inside = upper + torch.log(-torch.expm1(lower - upper))
    return torch.where(x_0 < -0.999, log_cdf(x + 1 / 255), torch.where(x_0 > 0.999, log_cdf(1 / 255 - x), inside))


def variational_term(chain, x_0, x_t, t, out):
    """L_{t-1} = KL(q(x_s | x_t, x_0) || p(x_s | x_t)) (paper eq. 5); L_0 = -log p(x_0 | x_t) at the last step (eq. 13).

    chain: a `GaussianDiffusionSampler`; s is the timestep below t in it. x_0: 8-bit images in [-1, 1]. x_t: drawn from
    q(x_t | x_0). t: int64 [B]. out: the output of the network at x_t.

    Return (term, x0_hat), both in the shape of x_0. The term of a pixel is in bits, so that the mean is in bits/dim.
    """
    x0_hat, v = chain.split(out, x_t, t)
    mean, log_var = chain.p_of(x0_hat, v, x_t, t)
    kl = normal_kl(*chain.q_mean_variance(x_0, x_t, t), mean, log_var)
    to_image = (t == chain.timesteps[0]).view(-1, *[1] * (x_t.ndim - 1))
    return torch.where(to_image, -discretised_log_likelihood(x_0, mean, log_var), kl) / math.log(2), x0_hat


def prior_term(chain, x_0):
    """L_T = KL(q(x_T | x_0) || p(x_T)) (paper eq. 5) for each pixel, in bits, in the shape of x_0."""
    alphas_bar = chain.alphas_bar[chain.timesteps[-1]].item()
    mean, variance = chain.start_moments()
    return normal_kl(alphas_bar**0.5 * x_0, math.log1p(-alphas_bar), mean, variance.log()) / math.log(2)
