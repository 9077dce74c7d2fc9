"""Compare the tables and chains of diffusion.py with pytorch-ddpm, closed forms and diffusers' schedulers."""

import re
from collections import deque
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from conftest import golden, largest_error

from diffusion import GaussianDiffusionSampler, GaussianDiffusionTrainer, standard_normal
from process.parameterisations import PARAMETERISATIONS, Parameterisation
from process.schedules import SCHEDULES, SPACINGS, make_betas, make_timesteps
from process.solvers import SOLVERS, Solver, step_table

T = 50
BETAS = 1e-4, 0.02
FIXED = ['fixedlarge', 'fixedsmall']


def make_sampler(net, **options):
    return GaussianDiffusionSampler(net, *BETAS, T, 16, 'epsilon', options.pop('var_type', 'fixedlarge'), **options)


def of_T(T):
    """Return the alphas_bar of T steps."""
    return (1 - make_betas('linear', *BETAS, T)).cumprod(0)


def last_state(sampler, x_T, **where):
    return deque(sampler.trajectory(x_T, **where), maxlen=1).pop()[1]


# --- pytorch-ddpm's numbers


@pytest.mark.parametrize('key', golden('schedules').files)
def test_schedule_equals_reference(key):
    name, steps, *ends = key.split('/')
    name = {'ldm_linear': 'quad', 'ldm_sqrt_linear': 'linear', 'ldm_sqrt': 'sqrt'}.get(name, name)
    betas = make_betas(name, *(map(float, ends) if ends else BETAS), int(steps))
    np.testing.assert_allclose(betas, golden('schedules')[key], rtol=1e-12, atol=1e-15)


def test_loss_and_gradients_equal_reference(reference, reference_net):
    trainer = GaussianDiffusionTrainer(reference_net, *BETAS, T)
    torch.manual_seed(int(reference['train_seed']))
    t, eps = trainer.draw(reference['train_x0'].shape, 'cpu')
    assert torch.equal(t, reference['train_t']) and torch.equal(eps, reference['train_noise'])
    torch.manual_seed(int(reference['train_seed']))
    loss = trainer(reference['train_x0'])
    assert largest_error(loss, reference['train_loss']) < 1e-5
    reference_net.zero_grad()
    loss.mean().backward()
    for key in ('head.weight', 'tail.2.weight'):
        assert largest_error(reference_net.get_parameter(key).grad, reference[f'grad/{key}']) < 1e-5
    norm = torch.nn.utils.get_total_norm([p.grad for p in reference_net.parameters() if p.grad is not None])
    assert norm.item() == pytest.approx(reference['grad_norm'].item(), rel=1e-5)
    reference_net.zero_grad()


@pytest.mark.parametrize('var_type', FIXED)
def test_p_mean_variance_equals_reference(reference, reference_net, var_type):
    with torch.no_grad():
        mean, log_var = make_sampler(reference_net, var_type=var_type).p_mean_variance(
            reference['sample_xT'], torch.full((2,), T // 2)
        )
    assert largest_error(mean, reference[f'p_mean_{var_type}']) < 1e-5
    assert largest_error(log_var, reference[f'p_logvar_{var_type}']) < 1e-5


@pytest.mark.parametrize('var_type', FIXED)
@pytest.mark.parametrize('clip', [False, True])
def test_whole_chain_equals_reference(reference, reference_net, var_type, clip):
    sampler = make_sampler(reference_net, var_type=var_type, clip_denoised=clip)
    torch.manual_seed(int(reference['sample_seed']))
    x_0 = sampler(reference['sample_xT'])
    assert largest_error(x_0, reference[f'sample_{"clip" if clip else "noclip"}_{var_type}']) < 1e-4


@pytest.mark.parametrize('steps, eta', [(5, 0), (5, 1), (50, 0)])
def test_ddim_equals_reference(reference, reference_net, steps, eta):
    sampler = make_sampler(reference_net, var_type='fixedsmall', steps=steps, eta=float(eta))
    assert sampler.timesteps == reference[f'ddim_{steps}_seq' if steps == 5 else 'ddim_50_seq'].tolist()
    torch.manual_seed(int(reference['ddim_seed']))
    assert largest_error(last_state(sampler, reference['sample_xT']), reference[f'ddim_{steps}_eta{eta}']) < 1e-4


# --- closed forms


@pytest.mark.parametrize('schedule', SCHEDULES)
@pytest.mark.parametrize('steps', [None, 7])
@pytest.mark.parametrize('eta', [0.0, 0.3, 1.0])
def test_step_table_is_ddim_and_the_posterior(schedule, steps, eta):
    alphas_bar = (1 - make_betas(schedule, 1e-3, 0.05, T)).cumprod(0)
    timesteps = make_timesteps(of_T(T), steps)
    table = step_table(alphas_bar, timesteps, eta, 'fixedlarge').numpy()
    assert (step_table(alphas_bar, torch.tensor(list(timesteps)), eta, 'fixedlarge').numpy() == table).all()
    for i, t in enumerate(timesteps):
        ab_t = alphas_bar[t].item()
        ab_s = alphas_bar[timesteps[i - 1]].item() if i else 1.0
        beta = 1 - ab_t / ab_s
        sigma = eta * np.sqrt((1 - ab_s) / (1 - ab_t) * beta)
        # x_s = sqrt(ab_s) x_0 + sqrt(1 - ab_s - sigma^2) eps + sigma z (DDIM eq. 12), with x_0 and eps known
        x_0, eps = 0.7, -1.3
        x_t = np.sqrt(ab_t) * x_0 + np.sqrt(1 - ab_t) * eps
        x_s = np.sqrt(ab_s) * x_0 + np.sqrt(max(1 - ab_s - sigma**2, 0)) * eps
        assert table[i, 0] * x_0 + table[i, 1] * x_t == pytest.approx(x_s, abs=1e-12)
        assert table[i, 2] == pytest.approx(0 if i == 0 else np.sqrt(beta) if eta == 1 else sigma, abs=1e-12)
        if eta == 1:  # paper eq. 7
            posterior = np.sqrt(ab_s) * beta / (1 - ab_t), np.sqrt(1 - beta) * (1 - ab_s) / (1 - ab_t)
            np.testing.assert_allclose(table[i, :2], posterior, atol=1e-12)


def test_fixedlarge_below_eta_1_is_ddims_sigma():
    alphas_bar = (1 - make_betas('linear', *BETAS, T)).cumprod(0)
    large, small = (step_table(alphas_bar, range(T), 0.5, var_type) for var_type in ('fixedlarge', 'fixedsmall'))
    assert torch.equal(large, small)


@pytest.mark.parametrize('schedule', SCHEDULES)
@pytest.mark.parametrize('mean_type', PARAMETERISATIONS)
def test_parameterisation_round_trip(schedule, mean_type):
    if make_betas(schedule, 1e-3, 0.05, T)[-1] == 1 and mean_type == 'epsilon':
        pytest.skip('beta = 1 at the last step: refused, see test_jsd_with_epsilon_is_refused')
    trainer = GaussianDiffusionTrainer(None, 1e-3, 0.05, T, schedule=schedule, mean_type=mean_type)
    parameterisation = trainer.parameterisation
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, T, 3, generator=generator)
    t = torch.arange(T)
    x_t = trainer.sqrt_alphas_bar.float()[:, None] * x_0 + trainer.sqrt_one_minus_alphas_bar.float()[:, None] * eps
    target = parameterisation.target(x_0, eps, t)
    # If little of x_0 is left in the output, the error is float32's rounding of x_t.
    slack = 1e-5 * (1 + parameterisation.from_x_t.abs() + parameterisation.from_out.abs()).float()[:, None]
    assert ((parameterisation.to_x0(target, x_t, t) - x_0).abs() < slack).all()


def test_targets_are_the_named_quantities():
    alphas_bar = (1 - make_betas('linear', *BETAS, T)).cumprod(0)
    x_0, eps = torch.randn(2, T, 1, generator=torch.Generator().manual_seed(0))
    t = torch.arange(T)
    ab = alphas_bar.float()[:, None]
    sampler = make_sampler(None)
    x_t = ab.sqrt() * x_0 + (1 - ab).sqrt() * eps
    expected = {
        'epsilon': eps,
        'xstart': x_0,
        'v': ab.sqrt() * eps - (1 - ab).sqrt() * x_0,
        'xprev': sampler.q_mean_variance(x_0, x_t, t)[0],
    }
    for mean_type in PARAMETERISATIONS:
        target = Parameterisation(mean_type, alphas_bar).target(x_0, eps, t)
        torch.testing.assert_close(target, expected[mean_type], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('mean_type', PARAMETERISATIONS)
@pytest.mark.parametrize('options', [{}, {'steps': 200}, {'steps': 200, 'eta': 0.0}, {'eta': 0.5}])
def test_exact_denoiser_samples_the_gaussian_it_knows(mean_type, options):
    """For x_0 ~ N(m, s^2), E[x_0 | x_t] is linear in x_t; a chain of many steps must then give mean m and std s."""
    m, s, steps = 0.3, 0.4, 400
    alphas_bar = (1 - make_betas('linear', 1e-4, 0.05, steps)).cumprod(0)

    def exact(x_t, t):
        ab = alphas_bar[t].float()[:, None]
        x_0 = m + ab.sqrt() * s**2 / (ab * s**2 + 1 - ab) * (x_t - ab.sqrt() * m)
        eps = (x_t - ab.sqrt() * x_0) / (1 - ab).sqrt()
        return Parameterisation(mean_type, alphas_bar).target(x_0, eps, t)

    sampler = GaussianDiffusionSampler(exact, 1e-4, 0.05, steps, mean_type=mean_type, var_type='fixedsmall', **options)
    torch.manual_seed(0)  # the spread of 20,000 draws is near the bound
    x_0 = last_state(sampler, torch.randn(20000, 1, generator=torch.Generator().manual_seed(0)))
    assert x_0.mean().item() == pytest.approx(m, abs=0.01)
    assert x_0.std().item() == pytest.approx(s, abs=0.02)


def test_training_to_convergence_learns_a_gaussian():
    """Algorithm 1, then Algorithm 2: a small network trained on 1-D data draws samples of its mean and std."""
    torch.manual_seed(0)
    steps = 40

    class Net(torch.nn.Module):
        """out = w_t x + b_t: the form of the exact answer, with learned numbers."""

        def __init__(self):
            super().__init__()
            self.w, self.b = (torch.nn.Parameter(torch.zeros(steps)) for _ in range(2))

        def forward(self, x, t):
            return self.w[t, None] * x + self.b[t, None]

    net = Net()
    trainer = GaussianDiffusionTrainer(net, 1e-3, 0.3, steps)
    optim = torch.optim.Adam(net.parameters(), lr=0.02)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(optim, 1500)
    for _ in range(1500):
        optim.zero_grad()
        trainer(-0.2 + 0.5 * torch.randn(1024, 1)).mean().backward()
        optim.step()
        sched.step()
    sampler = GaussianDiffusionSampler(net, 1e-3, 0.3, steps)
    x_0 = last_state(sampler, torch.randn(20000, 1))
    assert x_0.mean().item() == pytest.approx(-0.2, abs=0.03)
    assert x_0.std().item() == pytest.approx(0.5, abs=0.04)


# --- diffusers' schedulers

PREDICTION = {'epsilon': 'epsilon', 'xstart': 'sample', 'v': 'v_prediction'}


def dummy(x, t):
    return torch.sin(x + 1) * torch.cos(t.float()).view(-1, 1, 1, 1)


def run_diffusers(scheduler, steps, x, seed, **options):
    scheduler.set_timesteps(steps)
    torch.manual_seed(seed)
    for t in scheduler.timesteps:
        x = scheduler.step(dummy(x, t.repeat(len(x))), t, x, **options).prev_sample
    return x


@pytest.mark.parametrize('mean_type', PREDICTION)
@pytest.mark.parametrize('clip', [False, True])
@pytest.mark.parametrize('var_type, steps', [('fixed_small', 100), ('fixed_large', 100), ('fixed_small', 20)])
def test_ancestral_chain_equals_diffusers(mean_type, clip, var_type, steps):
    x_T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    scheduler = diffusers.DDPMScheduler(
        100, *BETAS, 'linear', variance_type=var_type, clip_sample=clip, prediction_type=PREDICTION[mean_type]
    )
    expected = run_diffusers(scheduler, steps, x_T, 2)
    sampler = GaussianDiffusionSampler(
        dummy, *BETAS, 100, mean_type=mean_type, var_type=var_type.replace('_', ''), steps=steps, clip_denoised=clip
    )
    torch.manual_seed(2)
    assert largest_error(last_state(sampler, x_T), expected) < 1e-4


@pytest.mark.parametrize('mean_type', PREDICTION)
@pytest.mark.parametrize('spacing', ['leading', 'linspace', 'trailing'])
@pytest.mark.parametrize('eta', [0.0, 0.5])
def test_ddim_chain_equals_diffusers(mean_type, spacing, eta):
    x_T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    scheduler = diffusers.DDIMScheduler(
        100, *BETAS, 'linear', clip_sample=False, timestep_spacing=spacing, prediction_type=PREDICTION[mean_type]
    )
    scheduler.set_timesteps(20)
    sampler = GaussianDiffusionSampler(
        dummy, *BETAS, 100, mean_type=mean_type, steps=20, spacing=spacing, eta=eta, var_type='fixedsmall'
    )
    assert sampler.timesteps == sorted(scheduler.timesteps.tolist())
    # DDIMScheduler always goes from t to t - T // S, which is the next timestep only with leading.
    if spacing == 'leading':
        expected = run_diffusers(scheduler, 20, x_T, 2, eta=eta)
        torch.manual_seed(2)
        assert largest_error(last_state(sampler, x_T), expected) < 1e-4


# --- timesteps


@pytest.mark.parametrize('spacing', SPACINGS)
@pytest.mark.parametrize('steps', [1, 2, 3, 7, 10, 61, 333, 1000])
def test_spacings_give_s_distinct_steps_but_for_what_some_repeat(spacing, steps):
    timesteps = make_timesteps(of_T(1000), steps, spacing)
    assert len(set(timesteps)) == len(timesteps) and timesteps == sorted(timesteps)
    repeats = spacing in ('quad', 'quad_full', 'logsnr')
    assert len(timesteps) == steps or (repeats and len(timesteps) < steps)
    assert timesteps[0] >= 0 and timesteps[-1] < 1000


@pytest.mark.parametrize('spacing', ['leading', 'linspace', 'trailing'])
@pytest.mark.parametrize('T', [7, 150, 1000])
def test_spacings_round_as_diffusers_does(spacing, T):
    scheduler = diffusers.DDPMScheduler(T, timestep_spacing=spacing)
    for S in range(1, T + 1):
        scheduler.set_timesteps(S)
        theirs = [t for t in reversed(scheduler.timesteps.tolist()) if t >= 0]  # drop -1, where its arange overshot
        assert make_timesteps(of_T(T), S, spacing) == theirs, S


@pytest.mark.parametrize('S, left', [(50, 49), (100, 96)])
@pytest.mark.parametrize('eta', [0.0, 0.5])
def test_quad_draws_what_ddims_own_loop_draws_with_its_repeats(S, left, eta):
    """Compare with ermongroup/ddim's generalised steps on its quadratic timesteps (DDIM eq. 12), no-ops included."""
    alphas_bar = (1 - make_betas('linear', 1e-4, 0.02, 1000)).cumprod(0)
    seq = [int(t) for t in np.linspace(0, np.sqrt(1000 * 0.8), S) ** 2]
    sampler = GaussianDiffusionSampler(dummy, 1e-4, 0.02, 1000, steps=S, spacing='quad', eta=eta)
    assert len(sampler.timesteps) == len(set(seq)) == left
    x = x_T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    for t, s in zip(reversed(seq), reversed([-1, *seq[:-1]]), strict=True):
        ab_t, ab_s = alphas_bar[t].item(), alphas_bar[s].item() if s >= 0 else 1.0
        eps = dummy(x, torch.full((2,), t))
        sigma = eta * ((1 - ab_t / ab_s) * (1 - ab_s) / (1 - ab_t)) ** 0.5
        x = ab_s**0.5 * (x - (1 - ab_t) ** 0.5 * eps) / ab_t**0.5 + (1 - ab_s - sigma**2) ** 0.5 * eps
        x = x + sigma * torch.randn(x.shape) if sigma else x
    torch.manual_seed(2)
    assert largest_error(last_state(sampler, x_T), x) < 1e-4


def test_clipping_leaves_xprev_whose_output_is_the_mean_itself():
    """In hojonathanho/diffusion's p_mean_variance too, model_mean is the output, however pred_xstart is clipped."""
    x_T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    states = {}
    for clip in (False, True):
        sampler = GaussianDiffusionSampler(dummy, *BETAS, T, mean_type='xprev', clip_denoised=clip)
        torch.manual_seed(2)
        states[clip] = list(sampler.trajectory(x_T))
        t = torch.full((2,), T - 1)
        mean, _ = sampler.p_mean_variance(x_T, t)
        torch.testing.assert_close(mean, dummy(x_T, t), atol=1e-4, rtol=1e-4)
    assert max(x0_hat.abs().max() for _, _, x0_hat in states[True]) > 1.5  # clipping would change it
    assert all(torch.equal(a[1], b[1]) for a, b in zip(*states.values(), strict=True))


def test_spacings_are_those_of_the_papers():
    assert make_timesteps(of_T(1000), 4, 'leading') == [0, 250, 500, 750]
    assert make_timesteps(of_T(1000), 4, 'linspace') == [0, 333, 666, 999]
    assert make_timesteps(of_T(1000), 4, 'trailing') == [249, 499, 749, 999]
    assert make_timesteps(of_T(1000), 10, 'quad') == [int(s) for s in np.linspace(0, np.sqrt(800), 10) ** 2]
    assert make_timesteps(of_T(1000), 5, 'quad_full') == [round(999 * (i / 4) ** 2) for i in range(5)]
    assert make_timesteps(of_T(10), [7, 0, 3]) == [0, 3, 7]
    page = (Path(__file__).parents[1] / 'docs' / 'sampling.md').read_text(encoding='utf-8')
    told = dict(re.findall(r'^\| `(\w+)` \| ([\d, ]+\d)', page, re.MULTILINE))
    assert len(told) == 5
    for spacing, timesteps in told.items():
        assert make_timesteps(of_T(1000), 5, spacing) == [int(t) for t in timesteps.split(', ')]


@pytest.mark.parametrize('schedule', ['linear', 'cosine', 'jsd'])
def test_logsnr_is_uniform_in_the_signal_to_noise_ratio(schedule):
    alphas_bar = (1 - make_betas(schedule, *BETAS, 1000)).cumprod(0)
    timesteps = make_timesteps(alphas_bar, 10, 'logsnr')
    assert timesteps[0] == 0 and timesteps[-1] == (998 if schedule == 'jsd' else 999)  # jsd ends in noise alone
    snr = torch.logit(alphas_bar)
    wanted = torch.linspace(snr[0], snr[timesteps[-1]], 10, dtype=torch.float64)
    reached = {min(timesteps, key=lambda t: abs(snr[t] - value)) for value in wanted.tolist()}
    assert len(timesteps) >= 9 and reached == set(timesteps)  # two of cosine's fall on one timestep
    for value in wanted.tolist():
        t = min(timesteps, key=lambda t: abs(snr[t] - value))
        assert snr[min(t + 1, 999)] <= value + 1e-9 and value - 1e-9 <= snr[max(t - 1, 0)]


def test_the_spacing_follows_the_order():
    for order, spacing in ((1, 'leading'), (2, 'trailing'), (3, 'trailing')):
        made = make_sampler(None, steps=5, eta=0.0, order=order)
        assert made.timesteps == make_timesteps(of_T(T), 5, spacing)
    assert make_sampler(None, steps=5, eta=0.0, order=2, spacing='quad').timesteps == make_timesteps(of_T(T), 5, 'quad')


@pytest.mark.parametrize('steps', [0, -1, 51, [], [0, 0], [-1], [50]])
def test_impossible_timesteps_are_refused(steps):
    with pytest.raises(ValueError, match='steps'):
        make_timesteps(of_T(T), steps)


# --- walking


def test_trajectory_counts_down_and_resumes_where_it_was_left(reference, reference_net):
    sampler = make_sampler(reference_net, steps=10, eta=0.0)
    x_T = reference['sample_xT']
    whole = list(sampler.trajectory(x_T))
    assert [t for t, _, _ in whole] == [41, 36, 31, 26, 21, 16, 11, 6, 1, 0]
    assert torch.equal(whole[-1][1], whole[-1][2])  # the step to the image returns the prediction itself
    first = list(sampler.trajectory(x_T, stop=21))
    assert [t for t, _, _ in first] == [41, 36, 31, 26, 21]
    second = list(sampler.trajectory(first[-1][1], start=21))
    torch.testing.assert_close(second[-1][1], whole[-1][1])
    # start may be off the chain: the walk then visits that state too.
    assert [t for t, _, _ in sampler.trajectory(x_T, start=19, stop=3)] == [16, 11, 6, 3]


def test_a_step_may_be_made_of_several_predictions(reference, reference_net, monkeypatch):
    def halves(ab_t, ab_s, cx):  # of this prediction and the one before, but for the first step
        C = ab_s.sqrt() - ab_t.sqrt() * cx
        older = torch.cat([C[:-1] / 2, torch.zeros(1)])
        return torch.stack([C - older, older], dim=1)

    monkeypatch.setitem(SOLVERS, 'halves', Solver(halves, of_sde=True))
    x_t, before = reference['sample_xT'], None
    first = make_sampler(reference_net, steps=5, eta=0.0)
    for (t, found, x0_hat), (c0, cx, _) in zip(
        make_sampler(reference_net, steps=5, spacing='leading', eta=0.0, order='halves').trajectory(x_t),
        step_table(first.alphas_bar, first.timesteps, 0.0).flip(0).tolist(),
        strict=True,
    ):
        mixed = x0_hat if before is None else (x0_hat + before) / 2
        x_t, before = c0 * mixed + cx * x_t, x0_hat
        torch.testing.assert_close(found, x_t)


def test_diffuse_walks_to_the_closed_form():
    sampler = make_sampler(None)
    x_0 = torch.full((20000, 1), 0.8)
    torch.manual_seed(0)
    states = dict(sampler.diffuse(x_0))
    assert list(states) == list(range(1, T + 1))
    for t in (1, 10, T):
        ab = sampler.alphas_bar[t - 1].item()
        assert states[t].mean().item() == pytest.approx(ab**0.5 * 0.8, abs=0.02)
        assert states[t].var().item() == pytest.approx(1 - ab, abs=0.02)
    torch.manual_seed(0)
    first, second = sampler.diffuse(x_0, stop=1), sampler.diffuse(states[1], start=1, stop=2)
    assert torch.equal(next(first)[1], states[1]) and torch.equal(next(second)[1], states[2])


@pytest.mark.parametrize('start, stop', [(0, 0), (51, 0), (5, 5), (5, 9), (5, -1)])
def test_impossible_walks_are_refused(start, stop):
    sampler = make_sampler(dummy)
    with pytest.raises(ValueError, match='start'):
        next(sampler.trajectory(torch.zeros(1, 3, 4, 4), start=start, stop=stop))
    with pytest.raises(ValueError, match='start'):
        next(sampler.diffuse(torch.zeros(1, 3, 4, 4), start=stop, stop=start))


def test_noise_does_not_depend_on_the_memory_format():
    x = torch.zeros(2, 3, 4, 4)
    drawn = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        drawn.append(standard_normal(x.to(memory_format=memory_format)))
    assert torch.equal(*drawn)


# --- refusals


def test_jsd_with_epsilon_is_refused_and_v_and_xstart_are_not():
    with pytest.raises(ValueError, match='epsilon gives no x_0'):
        GaussianDiffusionSampler(None, *BETAS, T, schedule='jsd')
    for mean_type in ('v', 'xstart', 'xprev'):
        sampler = GaussianDiffusionSampler(dummy, *BETAS, T, mean_type=mean_type, schedule='jsd')
        assert last_state(sampler, torch.zeros(1, 3, 4, 4)).isfinite().all()
        with pytest.raises(ValueError, match=f'eps_scale 1.01 with mean_type {mean_type} .* without eps_scale'):
            GaussianDiffusionSampler(dummy, *BETAS, T, mean_type=mean_type, schedule='jsd', eps_scale=1.01)


def test_what_ends_in_too_little_of_the_image_is_refused_for_that():
    with pytest.raises(ValueError, match='alphas_bar falls to 5.13e-82: choose a schedule that ends in less noise'):
        GaussianDiffusionSampler(None, *BETAS, 18500)  # no beta is near 1
    for schedule in ('linear', 'linear_zero_snr'):
        with pytest.raises(ValueError, match='alphas_bar may be 0 only at T = 100000'):
            make_betas(schedule, *BETAS, 100_000)


def test_a_single_step_that_leaves_noise_alone():
    for spacing in SPACINGS:
        assert make_timesteps(torch.zeros(1, dtype=torch.float64), 1, spacing) == [0]


def test_noise_is_not_ignored_without_its_timesteps():
    x_0 = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match='t and eps go together'):
        GaussianDiffusionTrainer(dummy, *BETAS, T)(x_0, eps=x_0)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'T': 0}, 'T must be at least 1'),
        ({'beta_1': 0.0}, 'beta_1 must be in'),
        ({'beta_T': 1.5}, 'beta_T must be in'),
        ({'beta_1': 1.0, 'beta_T': 1.0}, 'only at T'),
        ({'schedule': 'cubic'}, 'schedule must be one of linear'),
        ({'mean_type': 'noise'}, 'mean_type must be one of epsilon'),
        ({'var_type': 'huge'}, 'var_type must be one of fixedlarge'),
        ({'spacing': 'even'}, 'spacing must be one of leading'),
        ({'eta': 1.5}, 'eta must be in'),
        ({'steps': 51}, 'between 1 and T = 50'),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    arguments = {'beta_1': 1e-4, 'beta_T': 0.02, 'T': T, **arguments}
    with pytest.raises(ValueError, match=message):
        GaussianDiffusionSampler(None, **arguments)


# --- what short chains need


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_the_noise_has_the_precision_of_the_image(dtype):
    trainer, seen = GaussianDiffusionTrainer(lambda x_t, t: seen.append(x_t) or x_t, *BETAS, T), []
    drawn = trainer.draw((2, 3, 4, 4), 'cpu', dtype)[1]
    torch.manual_seed(3)
    trainer(torch.zeros(2, 3, 4, 4, dtype=dtype))
    torch.manual_seed(3)
    t = torch.randint(T, size=(2,))
    eps = torch.randn(2, 3, 4, 4, dtype=dtype)
    factor = (1 - trainer.chain.alphas_bar).sqrt().float()[t].view(-1, 1, 1, 1)
    assert drawn.dtype == dtype
    torch.testing.assert_close(seen[0], (factor * eps).to(seen[0].dtype))


def test_antithetic_timesteps_come_in_pairs_and_are_uniform_still():
    trainer = GaussianDiffusionTrainer(None, 1e-4, 0.02, 7, antithetic_t=True)
    torch.manual_seed(0)
    t, eps = trainer.draw((5, 2), 'cpu')
    assert t.shape == (5,) and (t[:2] + t[3:] == 6).all() and eps.shape == (5, 2)
    drawn = torch.cat([trainer.draw((100, 1), 'cpu')[0] for _ in range(70)])
    counts = torch.bincount(drawn, minlength=7)
    assert len(counts) == 7 and (counts - 1000).abs().max() < 6 * 2**0.5 * 1000**0.5


@pytest.mark.parametrize('steps', [None, 5])
def test_a_chain_that_ends_short_of_noise_starts_with_the_moments_of_q(steps):
    torch.manual_seed(0)
    mean, std = torch.tensor([3.0, -1.0]), torch.tensor([0.1, 2.0])
    x_0 = mean + std * torch.randn(200_000, 2)
    sampler = GaussianDiffusionSampler(None, 1e-4, 0.02, 20, steps=steps, data_moments=torch.stack([mean, std]))
    *_, (_, q) = sampler.diffuse(x_0, stop=sampler.states[-1])
    p = sampler.start(torch.randn(200_000, 2))
    torch.testing.assert_close(p.mean(0), q.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(p.std(0), q.std(0), atol=0.02, rtol=0)
    z = torch.randn(3, 2)
    assert torch.equal(GaussianDiffusionSampler(None, 1e-4, 0.02, 20).start(z), z)


def test_a_step_is_told_with_all_that_it_is_made_of():
    sampler = GaussianDiffusionSampler(lambda x, t: 0.5 * x, 1e-3, 0.2, 20, steps=6, order=2)
    x_T, walked = torch.randn(3, 1, 4, 4), []
    for taken, (t, _, row) in zip(sampler.walk(x_T, noise=torch.ones_like), sampler.route(), strict=True):
        assert taken.t == t + 1 and taken.row == row and torch.equal(taken.x_t, walked[-1].x_s if walked else x_T)
        total = row.cx * taken.x_t + sum(c * m for c, m in zip(row.c, taken.x0_hats, strict=False))
        torch.testing.assert_close(total if taken.z is None else total + row.std * taken.z, taken.x_s)
        timestep = torch.full((3,), t)
        eps = sampler.predict_eps_from_xstart(taken.x_t, timestep, taken.x0_hats[0])
        torch.testing.assert_close(eps, 0.5 * taken.x_t, atol=1e-4, rtol=1e-4)  # what the network said
        walked.append(taken)
    assert (walked[-1].s, walked[-1].z) == (0, None) and len(walked[0].x0_hats) == 1 and len(walked[1].x0_hats) == 2
