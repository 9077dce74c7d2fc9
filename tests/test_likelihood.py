"""Compare the bound's terms with openai/improved-diffusion, scipy and closed forms; test learned variances."""

import math
from collections import deque

import diffusers
import numpy as np
import pytest
import torch
from conftest import golden, largest_error
from scipy import integrate, stats
from torch.nn import functional as F

import nll
from diffusion import GaussianDiffusionSampler, Guidance
from process.bound import discretised_log_likelihood, normal_kl, prior_term, variational_term
from process.schedules import make_betas, make_timesteps
from process.solvers import VAR_TYPES, step_table

T = 50
BETAS = 1e-4, 0.02


# --- parts


def test_kl_is_the_integral_scipy_takes():
    rng = np.random.default_rng(0)
    x = np.linspace(-60, 60, 400_001)
    for mean_1, mean_2, log_var_1, log_var_2 in rng.uniform(-2, 2, (20, 4)):
        p, q = (stats.norm(mean, math.exp(v / 2)) for mean, v in ((mean_1, log_var_1), (mean_2, log_var_2)))
        expected = integrate.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x)
        value = normal_kl(*(torch.tensor(v, dtype=torch.float64) for v in (mean_1, log_var_1, mean_2, log_var_2)))
        assert value.item() == pytest.approx(expected, rel=1e-6)


def test_the_decoder_is_scipys_normal_distribution():
    rng = np.random.default_rng(0)
    pixels = np.concatenate([rng.integers(0, 256, 2000), [0, 255] * 500])
    x_0, std = pixels / 127.5 - 1, np.exp(rng.uniform(-5, 1, len(pixels)))
    mean = x_0 + std * rng.uniform(-8, 8, len(pixels))
    lower = np.where(pixels == 0, -np.inf, (x_0 - 1 / 255 - mean) / std)
    upper = np.where(pixels == 255, np.inf, (x_0 + 1 / 255 - mean) / std)
    flip = lower > 0  # flip the upper tail, where scipy's cdf rounds to 1
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
    assert value.min() < -1e6 and (mean.grad != 0).all()  # a clamped probability would have no gradient


# --- openai/improved-diffusion's terms


def with_variance(net, var_type):
    """Add a second half of channels to the reference's network if the variance is learned."""

    def model(x, t):
        out = net(x, t)
        if not VAR_TYPES[var_type].slope:
            return out
        return torch.cat([out, torch.tanh(net(x, (t + 1) % T)) - (4 if var_type == 'learned' else 0)], dim=1)

    return model


def tanh_log_ndtr(x):
    """Return the logarithm of improved-diffusion's approximation to the normal distribution."""
    return F.logsigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


@pytest.mark.parametrize('var_type', VAR_TYPES)
@pytest.mark.parametrize('clip', [0, 1])
def test_terms_equal_reference(reference_net, monkeypatch, var_type, clip):
    """All terms use its approximation to the normal distribution, which only affects t = 0."""
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


@pytest.mark.parametrize('moments', [None, (0.2, 0.4)])
def test_the_prior_term_of_a_chain_that_hardly_noises(moments):
    x_0 = torch.linspace(-1, 1, 8, dtype=torch.float64).view(1, 2, 2, 2)
    data = moments and torch.tensor(moments)[:, None, None, None].expand(2, 2, 2, 2)
    mean, std = moments or (0, None)
    beta = 1e-6  # in float32, 1 - alphas_bar is off by 5%
    variance = 1 - beta + beta if std is None else beta + (1 - beta) * std**2
    distance = ((1 - beta) ** 0.5 * (x_0 - mean)) ** 2
    expected = 0.5 * (beta / variance - 1 - math.log(beta / variance) + distance / variance) / math.log(2)
    sampler = GaussianDiffusionSampler(None, beta, beta, 1, data_moments=data)
    torch.testing.assert_close(prior_term(sampler, x_0.float()), expected.float(), rtol=1e-5, atol=1e-6)


# --- a Gaussian data set, whose best denoiser is linear


class MomentMatched:
    """sample.Noise, but each batch has exactly mean 0, variance 1, and no covariance with its images."""

    def __init__(self, x_0):
        self.basis = torch.linalg.qr(torch.stack([torch.ones(x_0.numel()), x_0.flatten()], dim=1).double())[0]
        self.shape = x_0.shape
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, x=None):
        z = torch.randn(self.basis.shape[0], dtype=torch.float64, generator=self.generator)
        z = z - self.basis @ (self.basis.T @ z)
        return (z / z.square().mean().sqrt()).float().view(self.shape)


MEAN, STD = -0.1, 0.2
GAUSSIAN_T, GAUSSIAN_BETAS = 100, (0.01, 0.2)


def gaussian_pixels():
    """Return 8-bit images of N(MEAN, STD^2), stratified so that they are as normal as 8 bits allow."""
    quantiles = stats.norm(MEAN, STD).ppf((np.arange(64 * 64) + 0.5) / 64**2)
    pixels = np.round((quantiles + 1) * 127.5)
    assert pixels.min() > 0 and pixels.max() < 255
    return torch.from_numpy(np.random.default_rng(0).permutation(pixels).reshape(64, 1, 8, 8) / 127.5 - 1).float()


def moments_of_x0(alphas_bar):
    """Return gain and variance by t for x_0 ~ N(MEAN, STD^2): E[x_0 | x_t] = m + gain (x_t - alpha m)."""
    variance = alphas_bar * STD**2 + 1 - alphas_bar
    return alphas_bar.sqrt() * STD**2 / variance, STD**2 * (1 - alphas_bar) / variance


def denoiser(sampler, v):
    """Return a network: the best epsilon for N(MEAN, STD^2), and `v` [T] as second half of channels unless None."""
    ab = sampler.alphas_bar
    gain, _ = moments_of_x0(ab)

    def model(x_t, t, y=None):
        alpha, k, sigma = (table[t].float().view(-1, 1, 1, 1) for table in (ab.sqrt(), gain, (1 - ab).sqrt()))
        out = (x_t - alpha * (MEAN + k * (x_t - alpha * MEAN))) / sigma
        return out if v is None else torch.cat([out, v[t].float().view(-1, 1, 1, 1).expand_as(out)], dim=1)

    return model


def bits_per_dim(var_type, v, monkeypatch, **options):
    sampler = GaussianDiffusionSampler(None, *GAUSSIAN_BETAS, GAUSSIAN_T, var_type=var_type, **options)
    sampler.model = denoiser(sampler, v)
    x_0 = gaussian_pixels()
    monkeypatch.setattr(nll, 'Noise', lambda seed, indices, shape, device: MomentMatched(x_0))
    batches = [(torch.arange(len(x_0)), x_0, None)]
    p = nll.term_probabilities(sampler.alphas_bar[sampler.timesteps], len(sampler.timesteps))
    return nll.estimate(sampler, batches, len(x_0), p, 0).result()


def test_nll_with_the_best_variance_is_the_exact_one(monkeypatch):
    """The reverse of a Gaussian chain is Gaussian: with its mean and variance the bound is -log p(x_0) itself."""
    ab = (1 - make_betas('linear', *GAUSSIAN_BETAS, GAUSSIAN_T)).cumprod(0)
    c0, _, sigma = step_table(ab, range(GAUSSIAN_T)).unbind(1)
    v = (sigma**2 + c0**2 * moments_of_x0(ab)[1]).log()
    result, _ = bits_per_dim('learned', v, monkeypatch)
    x_0, normal = gaussian_pixels().double().numpy(), stats.norm(MEAN, STD)
    exact = -np.log2(normal.cdf(x_0 + 1 / 255) - normal.cdf(x_0 - 1 / 255)).mean()
    assert exact > 6 and result['bits_per_dim'] == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize('var_type', ['fixedlarge', 'fixedsmall', 'learned_range'])
@pytest.mark.parametrize('steps', [None, 20])
def test_each_term_is_its_closed_form(monkeypatch, var_type, steps):
    v = None if var_type.startswith('fixed') else torch.full((GAUSSIAN_T,), 0.3)
    result, arrays = bits_per_dim(var_type, v, monkeypatch, steps=steps)
    full = (1 - make_betas('linear', *GAUSSIAN_BETAS, GAUSSIAN_T)).cumprod(0)
    timesteps = make_timesteps(full, steps)
    ab = full[timesteps].numpy()
    # For the 8-bit data themselves: E (x_0 - x0_hat)^2 for x_t = alpha x_0 + sigma eps.
    x_0 = gaussian_pixels().double().numpy().ravel()
    gain = moments_of_x0(full)[0][timesteps].numpy()
    square = (1 - np.sqrt(ab) * gain) ** 2 * np.mean((x_0 - MEAN) ** 2) + gain**2 * (1 - ab)
    before = np.append(1, ab[:-1])
    beta = 1 - ab / before
    small = (1 - before) / (1 - ab) * beta
    small[0] = small[1]
    variance = {'fixedlarge': np.append(small[0], beta[1:]), 'fixedsmall': small}.get(
        var_type, np.exp(0.65 * np.log(beta) + 0.35 * np.log(small))
    )
    kl = 0.5 * (np.log(variance / small) + (small + before * beta**2 / (1 - ab) ** 2 * square) / variance - 1)
    np.testing.assert_allclose(arrays['terms'][1:].numpy(), kl[1:] / math.log(2), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(arrays['x0_mse'], square, rtol=1e-4)
    nodes = np.linspace(-6, 6, 201)
    weights = stats.norm.pdf(nodes)
    x0_hat = MEAN + gain[0] * (np.sqrt(ab[0]) * (x_0[:, None] - MEAN) + np.sqrt(1 - ab[0]) * nodes)
    away, p = abs(x_0[:, None] - x0_hat), stats.norm(0, np.sqrt(variance[0]))
    decoder = -np.log2(p.cdf(1 / 255 - away) - p.cdf(-1 / 255 - away)) @ weights / weights.sum()
    prior = 0.5 * (ab[-1] * np.mean(x_0**2) - ab[-1] - np.log1p(-ab[-1])) / math.log(2)
    exact = prior + kl[1:].sum() / math.log(2) + decoder.mean()
    assert result['L_0'] == pytest.approx(decoder.mean(), abs=1e-3)
    assert result['L_T'] == pytest.approx(prior, rel=1e-4)
    assert result['bits_per_dim'] == pytest.approx(exact, abs=1e-3)


# --- learned variances


def two_halves(x, t):
    """Act as a network of 2 C channels: a mean and a variance that vary over pixels and timesteps."""
    wave = torch.sin(3 * x + t.view(-1, 1, 1, 1))
    return torch.cat([torch.sin(x + 1) * torch.cos(t.float()).view(-1, 1, 1, 1), wave], dim=1)


def last_state(sampler, x_T):
    return deque(sampler.trajectory(x_T), maxlen=1).pop()[1]


@pytest.mark.parametrize('var_type, steps', [('learned_range', 100), ('learned_range', 20), ('learned', 100)])
@pytest.mark.parametrize('clip', [False, True])
def test_chain_equals_diffusers(var_type, steps, clip):
    def ours(x, t):
        mean, v = two_halves(x, t).chunk(2, dim=1)
        return torch.cat([mean, v if var_type == 'learned_range' else v - 6], dim=1)

    def theirs(x, t):  # its learned variance is not a logarithm
        mean, v = ours(x, t).chunk(2, dim=1)
        return torch.cat([mean, v if var_type == 'learned_range' else v.exp()], dim=1)

    x_T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    scheduler = diffusers.DDPMScheduler(100, *BETAS, 'linear', variance_type=var_type, clip_sample=clip)
    scheduler.set_timesteps(steps)
    torch.manual_seed(2)
    expected = x_T
    for t in scheduler.timesteps:
        expected = scheduler.step(theirs(expected, t.repeat(2)), t, expected).prev_sample
    sampler = GaussianDiffusionSampler(ours, *BETAS, 100, var_type=var_type, steps=steps, clip_denoised=clip)
    torch.manual_seed(2)
    assert largest_error(last_state(sampler, x_T), expected) < 1e-4


def test_a_learned_variance_grows_with_the_step():
    """From t to s it is e^v times (1 - ab_t / ab_s) / beta_t. The last step, to the image, has none."""
    sampler = GaussianDiffusionSampler(two_halves, *BETAS, T, var_type='learned', steps=5)
    x_t = torch.linspace(-1, 1, 4 * 9).view(4, 1, 3, 3)
    for t, s in ((40, 30), (20, 10)):
        _, log_var = sampler.p_mean_variance(x_t, torch.full((4,), t))
        v = two_halves(x_t, torch.full((4,), t))[:, 1:]
        long, short = (1 - sampler.alphas_bar[t] / sampler.alphas_bar[u] for u in (s, t - 1))
        torch.testing.assert_close(log_var, v + (long / short).log().float())
        torch.manual_seed(0)
        drawn = torch.stack([next(sampler.trajectory(x_t, start=t + 1))[1] for _ in range(1000)])
        torch.testing.assert_close(drawn.var(0), log_var.exp(), rtol=0.25, atol=0)


@pytest.mark.parametrize('var_type', ['learned', 'learned_range'])
def test_below_eta_1_the_mean_alone_matters(var_type):
    x_T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    states = []
    for kind, model in ((var_type, two_halves), ('fixedsmall', lambda x, t: two_halves(x, t)[:, :3])):
        sampler = GaussianDiffusionSampler(model, *BETAS, T, var_type=kind, steps=7, eta=0.5)
        torch.manual_seed(0)
        states.append(last_state(sampler, x_T))
    assert torch.equal(*states)


def test_the_best_learned_variance_samples_the_gaussian_in_few_steps():
    """learned_range uses the v with the exact variance; with 4 of 100 steps, fixed variances miss the std."""
    stds = {}
    for var_type in ('fixedlarge', 'fixedsmall', 'learned_range'):
        sampler = GaussianDiffusionSampler(None, *GAUSSIAN_BETAS, GAUSSIAN_T, var_type=var_type, steps=4)
        v = None
        if var_type == 'learned_range':
            c0, _, log_small, a, b = sampler.table[:, [0, 1, 3, 4, 5]].unbind(1)
            v = ((log_small.exp() + c0**2 * moments_of_x0(sampler.alphas_bar)[1]).log() - a) / b
        sampler.model = denoiser(sampler, v)
        torch.manual_seed(0)
        *_, (_, before, _), _ = sampler.trajectory(torch.randn(20_000, 1, 1, 1))
        stds[var_type] = before.std().item()
    alphas_bar = sampler.alphas_bar[sampler.timesteps[0]].item()
    exact = math.sqrt(alphas_bar * STD**2 + 1 - alphas_bar)
    assert stds['learned_range'] == pytest.approx(exact, rel=0.02)
    assert abs(stds['fixedlarge'] / exact - 1) > 0.04 and abs(stds['fixedsmall'] / exact - 1) > 0.04


def test_guidance_leaves_the_variance_to_the_conditional_pass():
    def net(x, t, y):
        return torch.cat([x + y.view(-1, 1, 1, 1), x * y.view(-1, 1, 1, 1)], dim=1)

    x, t, y = torch.ones(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), torch.tensor([1, 2])
    mean, variance = Guidance(net, 3, 5)(x, t, y).chunk(2, dim=1)
    torch.testing.assert_close(mean, 3 * (x + y.view(2, 1, 1, 1)) - 2 * (x + 5))
    assert torch.equal(variance, x * y.view(2, 1, 1, 1))


@pytest.mark.parametrize('var_type, channels', [('learned', 3), ('learned_range', 3), ('fixedlarge', 6)])
def test_a_network_of_other_channels_is_refused(var_type, channels):
    sampler = GaussianDiffusionSampler(lambda x, t: torch.zeros(1, channels, 4, 4), *BETAS, T, var_type=var_type)
    with pytest.raises(ValueError, match=f'{var_type} does not fit a network of {channels} channels'):
        sampler(torch.zeros(1, 3, 4, 4))


# --- fewer terms per image


def test_each_term_is_asked_as_often_as_its_weight_says():
    ab = (1 - make_betas('linear', *BETAS, T)).cumprod(0)
    for steps in (2, 9, 30, T):
        p = nll.term_probabilities(ab, steps)
        rows = nll.pick_terms(p, torch.arange(4000), seed=3)
        assert rows.shape == (4000, steps) and p.sum().item() == pytest.approx(steps) and p[0] == 1
        counts = torch.bincount(rows.flatten(), minlength=T)
        torch.testing.assert_close(counts / 4000, p.float(), atol=0.01, rtol=0)
        assert (rows.diff(dim=1) > 0).all()  # no term twice


@pytest.mark.parametrize('steps', [0, 1, T + 1])
def test_impossible_numbers_of_terms_are_refused(steps):
    with pytest.raises(ValueError, match=f'--nll_steps must be between 2 and the {T} steps of the chain, not {steps}'):
        nll.term_probabilities((1 - make_betas('linear', *BETAS, T)).cumprod(0), steps)


def test_fewer_terms_estimate_the_same_bound():
    sampler = GaussianDiffusionSampler(None, *GAUSSIAN_BETAS, GAUSSIAN_T)
    sampler.model = denoiser(sampler, None)
    x_0 = gaussian_pixels()
    found = {}
    for steps in (GAUSSIAN_T, 10):
        batches = [(indices, x_0[indices], None) for indices in torch.arange(64).split(24)]
        p = nll.term_probabilities(sampler.alphas_bar, steps)
        found[steps] = nll.estimate(sampler, batches, 64, p, 0).result()
    (_, whole), (part, arrays) = found.values()
    off = arrays['totals'] - whole['totals']
    error = off.std() / len(off) ** 0.5
    assert abs(off.mean()) < 4 * error and error < 0.03
    assert part['standard_error'] == pytest.approx((arrays['totals'].std() / 8).item())
    total = arrays['prior'].mean() + arrays['terms'].sum()
    assert part['bits_per_dim'] == pytest.approx(total.item()) == pytest.approx(arrays['totals'].mean().item())
