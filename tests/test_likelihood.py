"""The terms of the variational bound against openai/improved-diffusion, scipy and closed forms; learned variances."""

import math

import numpy as np
import pytest
import torch
from conftest import golden
from scipy import stats
from torch.nn import functional as F

from diffusion import VAR_TYPES, GaussianDiffusionSampler
from likelihood import discretised_log_likelihood, normal_kl, prior_term, variational_term

T = 50
BETAS = 1e-4, 0.02


# --- parts


def test_kl_is_the_integral_scipy_takes():
    rng = np.random.default_rng(0)
    x = np.linspace(-60, 60, 400_001)
    for mean_1, mean_2, log_var_1, log_var_2 in rng.uniform(-2, 2, (20, 4)):
        p, q = (stats.norm(mean, math.exp(v / 2)) for mean, v in ((mean_1, log_var_1), (mean_2, log_var_2)))
        expected = np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x)
        value = normal_kl(*(torch.tensor(v, dtype=torch.float64) for v in (mean_1, log_var_1, mean_2, log_var_2)))
        assert value.item() == pytest.approx(expected, rel=1e-6)


def test_the_decoder_is_scipys_normal_distribution():
    rng = np.random.default_rng(0)
    pixels = np.concatenate([rng.integers(0, 256, 2000), [0, 255] * 500])
    x_0, std = pixels / 127.5 - 1, np.exp(rng.uniform(-5, 1, len(pixels)))
    mean = x_0 + std * rng.uniform(-8, 8, len(pixels))
    lower = np.where(pixels == 0, -np.inf, (x_0 - 1 / 255 - mean) / std)
    upper = np.where(pixels == 255, np.inf, (x_0 + 1 / 255 - mean) / std)
    flip = lower > 0  # the upper tail, where scipy's cdf rounds to 1
    lower, upper = np.where(flip, -upper, lower), np.where(flip, -lower, upper)
    expected = np.log(stats.norm.cdf(upper) - stats.norm.cdf(lower))
    value = discretised_log_likelihood(*map(torch.from_numpy, (x_0, mean, 2 * np.log(std))))
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-6, atol=1e-6)
    assert len(set(pixels)) == 256 and expected.min() < -30


def test_the_decoder_is_a_distribution_over_pixels():
    x_0 = (torch.arange(256, dtype=torch.float64) / 127.5 - 1)[:, None]
    mean = torch.tensor([-3.0, -1.0, 0.0, 0.3, 1.0, 40.0], dtype=torch.float64)
    for log_var in (-12.0, -4.0, 3.0):
        total = discretised_log_likelihood(x_0, mean, torch.tensor(log_var, dtype=torch.float64)).exp().sum(0)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-9, atol=0)


def test_the_decoder_and_its_gradient_are_finite_far_from_the_mean():
    x_0 = torch.tensor([0, 1, 100, 254, 255]) / 127.5 - 1
    mean = torch.linspace(-30, 30, 61)[:, None].requires_grad_()
    log_var = torch.tensor(-11.0, requires_grad=True)
    value = discretised_log_likelihood(x_0, mean, log_var)
    value.sum().backward()
    assert value.isfinite().all() and mean.grad.isfinite().all() and log_var.grad.isfinite()
    assert value.min() < -1e6 and (mean.grad != 0).all()  # where a clamped probability would teach nothing


# --- openai/improved-diffusion's terms


def with_variance(net, var_type):
    """The reference's network and, for a learned variance, its second half of channels."""

    def model(x, t):
        out = net(x, t)
        if not VAR_TYPES[var_type].slope:
            return out
        return torch.cat([out, torch.tanh(net(x, (t + 1) % T)) - (4 if var_type == 'learned' else 0)], dim=1)

    return model


def tanh_log_ndtr(x):
    """improved-diffusion's approximation to the normal distribution, as its logarithm."""
    return F.logsigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


@pytest.mark.parametrize('var_type', VAR_TYPES)
@pytest.mark.parametrize('clip', [0, 1])
def test_terms_equal_reference(reference_net, monkeypatch, var_type, clip):
    """All of them with its approximation to the normal distribution, which only t = 0 knows the difference of."""
    arrays = {key: torch.from_numpy(value) for key, value in golden('vlb_a').items() if value.ndim}
    x_0 = arrays['x0'].float() / 127.5 - 1
    sampler = GaussianDiffusionSampler(None, *BETAS, T, 16, 'epsilon', var_type, clip_denoised=bool(clip))
    model = with_variance(reference_net, var_type)
    exact, bits, mse = [], [], []
    for step in range(T):
        t = torch.full((2,), step)
        ab = sampler.alphas_bar[step]
        x_t = (ab.sqrt() * x_0 + (1 - ab).sqrt() * arrays['noise'][step]).float()
        with torch.no_grad():
            out = model(x_t, t)
            exact.append(variational_term(sampler, x_0, x_t, t, out)[0].mean((1, 2, 3)))
            with monkeypatch.context() as patch:
                patch.setattr(torch.special, 'log_ndtr', tanh_log_ndtr)
                term, x0_hat = variational_term(sampler, x_0, x_t, t, out)
        bits.append(term.mean((1, 2, 3)))
        mse.append(((x0_hat - x_0) ** 2).mean((1, 2, 3)))
    expected = arrays[f'vb_{var_type}_clip{clip}']
    torch.testing.assert_close(torch.stack(bits, dim=1), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.stack(exact, dim=1)[:, 1:], expected[:, 1:], rtol=1e-5, atol=1e-5)
    assert 1e-5 < (exact[0] - expected[:, 0]).abs().max() < 3e-3
    torch.testing.assert_close(torch.stack(mse, dim=1), arrays[f'x0mse_{var_type}_clip{clip}'], rtol=1e-5, atol=1e-5)
    prior = prior_term(sampler, x_0).mean((1, 2, 3))
    torch.testing.assert_close(prior, arrays['prior_bpd'], rtol=1e-5, atol=1e-5)
