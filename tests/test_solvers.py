"""Compare the solvers of orders 1 to 3 with diffusers' schedulers and with exact solutions."""

import math
from collections import deque

import diffusers
import pytest
import torch
from conftest import largest_error

from diffusion import GaussianDiffusionSampler
from process.parameterisations import Parameterisation
from process.schedules import make_betas
from process.solvers import SOLVERS, encoding_steps, solver_steps

T, BETAS = 1000, (1e-4, 0.02)
THEIR_PREDICTION = {'epsilon': 'epsilon', 'v': 'v_prediction', 'xstart': 'sample'}
# Name -> order, corrector, eta, and diffusers' scheduler with the settings that make it the same.
AT_THE_END = {'lower_order_final': True, 'final_sigmas_type': 'zero'}
CASES = {
    '2M': (2, False, 0.0, diffusers.DPMSolverMultistepScheduler, {'algorithm_type': 'dpmsolver++'}),
    'SDE-2M': (2, False, 1.0, diffusers.DPMSolverMultistepScheduler, {'algorithm_type': 'sde-dpmsolver++'}),
    **{
        f'Uni{"PC" if corrector else "P"}-{order}': (
            order,
            corrector,
            0.0,
            diffusers.UniPCMultistepScheduler,
            {'solver_type': 'bh2', 'disable_corrector': [] if corrector else list(range(T))},
        )
        for order in (1, 2, 3)
        for corrector in (False, True)
    },
}


def net(x, t, y=None):
    """Stand in for a network, not a linear one: [B, 3, 2, 2] -> the same shape."""
    mixing = torch.randn(12, 12, generator=torch.Generator().manual_seed(0)) / 6
    return torch.tanh(x.flatten(1) @ mixing + t.view(-1, 1) / 1000).view(x.shape)


def walk(sampler, x_T, **where):
    return deque(sampler.trajectory(x_T, **where), maxlen=1).pop()[1]


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('spacing', ['leading', 'linspace', 'trailing'])
@pytest.mark.parametrize('mean_type', THEIR_PREDICTION)
def test_a_walk_equals_diffusers(name, spacing, mean_type):
    order, corrector, eta, scheduler, settings = CASES[name]
    for S in (5, 10, 50):
        theirs = scheduler(
            T,
            *BETAS,
            prediction_type=THEIR_PREDICTION[mean_type],
            timestep_spacing=spacing,
            solver_order=order,
            **settings,
            **AT_THE_END,
        )
        theirs.alphas_cumprod = (1 - make_betas('linear', *BETAS, T)).cumprod(0)  # theirs are rounded to float32
        theirs.set_timesteps(S)
        x = x_T = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(1))
        drawn = torch.randn(S, *x_T.shape, generator=torch.Generator().manual_seed(2))
        for t, z in zip(theirs.timesteps, drawn, strict=True):
            noise = {'variance_noise': z} if eta else {}
            x = theirs.step(net(x, t.expand(2)), t, x, **noise).prev_sample
        sampler = GaussianDiffusionSampler(
            net, *BETAS, T, 2, mean_type, steps=theirs.timesteps, eta=eta, order=order, corrector=corrector
        )
        zs = iter(drawn)
        assert largest_error(walk(sampler, x_T, noise=lambda x, zs=zs: next(zs)), x) < 1e-5, S


# --- Gaussian data, of which the best prediction and the solution of the ODE are known

MEAN, STD = 0.3, 0.5


def spread(ab):
    """Return the standard deviation of x_t for x_0 ~ N(MEAN, STD^2)."""
    return (ab * STD**2 + 1 - ab).sqrt()


def best_x0(x_t, ab):
    return MEAN + STD**2 * ab.sqrt() / spread(ab) ** 2 * (x_t - ab.sqrt() * MEAN)


def gaussian_walk(z, S, eta=0.0, order=1, corrector=False, noise=torch.zeros_like, left_out=0):
    """Take S steps, uniform in log(alpha / sigma) from -4 to 2, of the state that is z spreads above its mean.

    left_out: how many of the last steps are not taken. Returns how many spreads above its mean the last state is. The
    ODE keeps the number.
    """
    ab = torch.sigmoid(2 * torch.linspace(2, -4, S + 1, dtype=torch.float64))
    steps = solver_steps(ab, range(S + 1), eta, 'fixedlarge', order, corrector)
    x_t, x0_hats = ab[S].sqrt() * MEAN + spread(ab[S]) * z, deque(maxlen=4)
    for ab_t, step in list(zip(ab, steps, strict=True))[:left_out:-1]:
        x0_hats.appendleft(best_x0(x_t, ab_t))
        x_t = step.cx * x_t + sum(c * m for c, m in zip(step.c, x0_hats, strict=False)) + step.std * noise(x_t)
    return (x_t - ab[left_out].sqrt() * MEAN) / spread(ab[left_out])


@pytest.mark.parametrize('order', SOLVERS)
@pytest.mark.parametrize('corrector', [False, True])
def test_the_error_falls_with_the_order_and_one_more_with_the_corrector(order, corrector):
    z = torch.tensor(1.3, dtype=torch.float64)

    def slopes(left_out):
        walks = [gaussian_walk(z, S, 0.0, order, corrector, left_out=left_out) for S in (128, 256, 512)]
        errors = [(last - z).abs().item() for last in walks]
        assert errors[-1] > 1e-10  # well above rounding
        return [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]

    assert slopes(left_out=2) == pytest.approx([order + corrector] * 2, abs=0.3)
    # The last two steps are of order 2 at most, and no prediction corrects the very last: an error of the third order.
    assert slopes(left_out=0) == pytest.approx([min(order + corrector, 3)] * 2, abs=0.3)


@pytest.mark.parametrize('eta', [0.5, 1.0])
@pytest.mark.parametrize('order', [1, 2])
def test_the_sde_keeps_mean_and_variance(order, eta):
    generator = torch.Generator().manual_seed(0)

    def noise(x):
        return torch.randn(x.shape, dtype=x.dtype, generator=generator)

    n, (few, many) = 200_000, (25, 200)
    start = torch.randn(n, dtype=torch.float64, generator=generator)
    last = gaussian_walk(start, many, eta, order, noise=noise)
    assert abs(last.mean()) < 4 / n**0.5 and abs(last.var() - 1) < (0.03 if order == 1 else 0.01)
    if order == 2:  # is closer in few steps
        errors = [abs(gaussian_walk(start, few, eta, q, noise=noise).var() - 1) for q in (1, 2)]
        assert errors[1] < errors[0] / 2


# --- the rows


@pytest.mark.parametrize('order', SOLVERS)
@pytest.mark.parametrize('corrector', [False, True])
def test_rows_keep_a_constant_prediction_and_begin_with_one(order, corrector):
    alphas_bar = (1 - make_betas('linear', *BETAS, T)).cumprod(0)
    timesteps = [0, 1, 5, 30, 200, 201, 999]
    rows, first = (solver_steps(alphas_bar, timesteps, 0.0, order=o, corrector=o > 1 and corrector) for o in (order, 1))
    assert len(rows[0].c) == order + (order > 1 and corrector)
    for row, plain in zip(rows, first, strict=True):
        assert row.cx == plain.cx and row.std == plain.std and sum(row.c) == pytest.approx(plain.c[0], rel=1e-9)
    assert all(c == 0 for c in rows[-1].c[1:]) and rows[0].c[1:] == [0.0] * (len(rows[0].c) - 1)


def test_a_chain_that_ends_in_noise_alone_begins_at_order_one():
    betas = make_betas('jsd', *BETAS, 100)  # alphas_bar falls to 0
    for order in SOLVERS:
        rows = solver_steps((1 - betas).cumprod(0), [0, 20, 40, 60, 80, 99], 0.0, order=order)
        assert all(math.isfinite(value) for row in rows for value in (row.cx, *row.c))


def test_order_one_is_the_step_table_bit_for_bit():
    alphas_bar = (1 - make_betas('linear', *BETAS, T)).cumprod(0)
    for eta in (0.0, 0.3, 1.0):
        for row, step in zip(
            solver_steps(alphas_bar, range(T), eta, 'fixedlarge'),
            GaussianDiffusionSampler(net, *BETAS, T, eta=eta).table[:, :3].tolist(),
            strict=True,
        ):
            assert [*row.c, row.cx, row.std] == step


# --- walks


@pytest.mark.parametrize('order, corrector', [(2, False), (3, False), (1, True), (3, True)])
def test_a_walk_that_stops_and_one_that_goes_on(order, corrector):
    options = {'steps': 10, 'spacing': 'leading', 'eta': 0.0}
    sampler = GaussianDiffusionSampler(net, *BETAS, T, 2, order=order, corrector=corrector, **options)
    x_T = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    whole = {t: x for t, x, _ in sampler.trajectory(x_T)}
    stopped = {t: x for t, x, _ in sampler.trajectory(x_T, stop=301)}
    assert all(torch.equal(x, whole[t]) for t, x in stopped.items())
    # One that goes on has no predictions yet: its first step is that of order 1.
    plain = GaussianDiffusionSampler(net, *BETAS, T, 2, **options)
    going_on, first = (next(s.trajectory(whole[301], start=301, stop=201))[1] for s in (sampler, plain))
    assert torch.equal(going_on, first)


def test_clipping_and_learned_variances_above_order_one():
    def wild(x, t, y=None):
        return torch.cat([3 * net(x, t), torch.ones_like(x)], dim=1)

    x_T = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    options = {'steps': 10, 'order': 2, 'clip_denoised': True}
    learned = GaussianDiffusionSampler(wild, *BETAS, T, 2, 'xstart', 'learned_range', **options)
    fixed = GaussianDiffusionSampler(lambda x, t: 3 * net(x, t), *BETAS, T, 2, 'xstart', 'fixedlarge', **options)
    walks = []
    for sampler in (learned, fixed):
        torch.manual_seed(0)
        walks.append(list(sampler.trajectory(x_T)))
    for (_, x, x0_hat), (_, other, _) in zip(*walks, strict=True):
        assert x0_hat.abs().max() <= 1 and torch.equal(x, other)


def test_eps_scale_divides_epsilon():
    alphas_bar = (1 - make_betas('linear', *BETAS, T)).cumprod(0)
    x_t, eps, t = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2), torch.tensor([10, 900])
    plain = Parameterisation('epsilon', alphas_bar).to_x0(eps / 1.02, x_t, t)
    assert largest_error(Parameterisation('epsilon', alphas_bar, 1.02).to_x0(eps, x_t, t), plain) < 1e-5
    x_0 = Parameterisation('epsilon', alphas_bar).to_x0(eps, x_t, t)
    for mean_type in ('xstart', 'v', 'xprev'):  # the same, whatever the network predicts
        out = Parameterisation(mean_type, alphas_bar).target(x_0, eps, t)
        assert largest_error(Parameterisation(mean_type, alphas_bar, 1.02).to_x0(out, x_t, t), plain) < 1e-4


# --- from image to noise


def test_encoding_is_diffusers_inverse_and_improved_diffusions_reverse_loop():
    x = x_0 = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    sampler = GaussianDiffusionSampler(net, *BETAS, T, 2, steps=20, eta=0.0)
    inverse = diffusers.DDIMInverseScheduler(T, *BETAS, clip_sample=False)
    inverse.set_timesteps(20)
    walked, ab = list(sampler.encode(x_0)), sampler.alphas_bar
    assert [t for t, _, _ in walked] == [t + 1 for t in sampler.timesteps[1:]]
    their_x = x_0
    for s, t, (_, found, _) in zip(sampler.timesteps, sampler.timesteps[1:], walked, strict=False):
        their_x = inverse.step(net(their_x, torch.full((2,), s)), t, their_x).prev_sample
        # improved-diffusion's ddim_reverse_sample: x_0 and eps at s, put together at t
        eps = net(x, torch.full((2,), s))
        x = ab[t].sqrt() * (x - (1 - ab[s]).sqrt() * eps) / ab[s].sqrt() + (1 - ab[t]).sqrt() * eps
        assert largest_error(found, x.float()) < 1e-5 and largest_error(found, their_x) < 1e-5


ROUND_TRIPS = [(1, False, 1), (1, True, 2), (2, False, 2), (2, True, 3), (3, False, 2)]


@pytest.mark.parametrize('order, corrector, slope', ROUND_TRIPS)
def test_the_error_of_a_round_trip_falls_with_the_order(order, corrector, slope):
    """Walk up and down between two noise levels, with the best prediction for Gaussian data."""
    errors, z = [], torch.tensor(1.3, dtype=torch.float64)
    for S in (100, 200, 400):
        ab = torch.sigmoid(2 * torch.linspace(2, -3, S + 1, dtype=torch.float64))
        x = ab[0].sqrt() * MEAN + spread(ab[0]) * z
        up = encoding_steps(ab, range(S + 1), order, corrector)[::-1]
        down = solver_steps(ab, range(S + 1), 0.0, order=order, corrector=corrector)[:0:-1]
        for levels, steps in ((ab, up), (ab.flip(0), down)):
            x0_hats = deque(maxlen=3)
            for ab_t, step in zip(levels, steps, strict=False):
                x0_hats.appendleft(best_x0(x, ab_t))
                x = step.cx * x + sum(c * m for c, m in zip(step.c, x0_hats, strict=False))
        errors.append(((x - ab[0].sqrt() * MEAN) / spread(ab[0]) - z).abs().item())
    assert all(math.log2(a / b) > slope - 0.3 for a, b in zip(errors, errors[1:], strict=False)), errors


def test_a_chain_without_timestep_zero_is_encoded_from_there():
    sampler = GaussianDiffusionSampler(net, *BETAS, T, 2, steps=4, spacing='trailing', eta=0.0)
    x_0 = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    assert sampler.timesteps[0] == 249 and [t for t, _, _ in sampler.encode(x_0)] == [250, 500, 750, 1000]
    with pytest.raises(ValueError, match='encoding needs a timestep above 0'):
        next(GaussianDiffusionSampler(net, *BETAS, T, 2, steps=[0], eta=0.0).encode(x_0))


# --- refusals


@pytest.mark.parametrize(
    'options, why',
    [
        ({'order': 4}, 'order must be one of 1, 2, 3, not 4'),
        ({'order': 3}, 'order 3 is for eta = 0, where a step adds no noise, not for eta = 1'),
        ({'corrector': True, 'eta': 0.5}, 'a corrector is for eta = 0, where a step adds no noise, not for eta = 0.5'),
        ({'order': 3, 'eta': 0.0, 'steps': 2}, 'order 3 needs 3 sampling steps or more, not 2'),
        ({'eps_scale': 0.0}, 'eps_scale must be above 0'),
    ],
)
def test_what_does_not_go_together_is_refused(options, why):
    with pytest.raises(ValueError, match=why):
        GaussianDiffusionSampler(net, *BETAS, T, **options)


def test_a_solver_without_a_corrector(monkeypatch):
    monkeypatch.setitem(SOLVERS, 'own', SOLVERS[2]._replace(corrected=None))
    with pytest.raises(ValueError, match='order own has no corrector'):
        GaussianDiffusionSampler(net, *BETAS, T, eta=0.0, order='own', corrector=True)
