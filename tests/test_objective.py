"""Compare each loss with its definition, and check that the sampler of t changes no expectation."""

import copy
import functools

import pytest
import torch
from conftest import TINY
from runs import config_of, differences, load, without_logdir

import train
from diffusion import GaussianDiffusionTrainer
from process.bound import variational_term
from process.losses import LossAware
from process.parameterisations import PARAMETERISATIONS, Parameterisation
from run import build

T = 20
BETAS = 1e-3, 0.2
X_0 = torch.randint(0, 256, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
EPS = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
STEPS = torch.tensor([0, 1, 5, 9, 15, 19])


def trainer_of(model, **options):
    return GaussianDiffusionTrainer(model, *BETAS, T, **options)


def noised(trainer):
    ab = trainer.chain.alphas_bar[STEPS].float().view(-1, 1, 1, 1)
    return ab.sqrt() * X_0 + (1 - ab).sqrt() * EPS


class TwoHalves(torch.nn.Module):
    """A mean and, if it is learned, a variance, with one weight each."""

    def __init__(self, learned):
        super().__init__()
        self.learned = learned
        self.mean, self.variance = (torch.nn.Parameter(torch.tensor(value)) for value in (0.9, 0.3))

    def forward(self, x, t):
        return torch.cat([self.mean * x, self.variance * x], dim=1) if self.learned else self.mean * x


@pytest.mark.parametrize('var_type', ['fixedlarge', 'fixedsmall', 'learned', 'learned_range'])
def test_kl_is_t_times_a_term_of_the_bound(var_type):
    def model(x, t):
        return torch.cat([0.9 * x, 0.3 * x], dim=1)[:, : 6 if var_type.startswith('learned') else 3]

    trainer = trainer_of(model, loss='kl', var_type=var_type)
    x_t = noised(trainer)
    term, _ = variational_term(trainer.chain, X_0, x_t, STEPS, model(x_t, STEPS))
    torch.testing.assert_close(trainer(X_0, t=STEPS, eps=EPS), T * term, rtol=1e-4, atol=1e-5)


def test_in_hybrid_the_bound_moves_the_variance_alone():
    gradients = {}
    for loss, var_type in (('hybrid', 'learned_range'), ('kl', 'learned_range'), ('mse', 'fixedlarge')):
        net = TwoHalves(learned=var_type == 'learned_range')
        value = trainer_of(net, loss=loss, var_type=var_type)(X_0, t=STEPS, eps=EPS)
        value.mean().backward()
        gradients[loss] = value.detach(), net.mean.grad, net.variance.grad
    torch.testing.assert_close(gradients['hybrid'][0], gradients['mse'][0] + 0.001 * gradients['kl'][0])
    torch.testing.assert_close(gradients['hybrid'][1], gradients['mse'][1])
    torch.testing.assert_close(gradients['hybrid'][2], 0.001 * gradients['kl'][2])
    assert abs(gradients['kl'][1] / gradients['mse'][1] - 1) > 0.1 and gradients['kl'][2] != 0


@pytest.mark.parametrize('gamma', [0.5, 5.0])
@pytest.mark.parametrize('mean_type', PARAMETERISATIONS)
def test_min_snr_is_one_loss_whatever_is_predicted(mean_type, gamma):
    """Hang et al. 2023, section 3.4: the weight is min(SNR, gamma) on x_0; over SNR on epsilon, over SNR + 1 on v."""
    alphas_bar = trainer_of(None).chain.alphas_bar
    x0_hat = 0.7 * X_0 - 0.1

    def model(x_t, t):
        ab = alphas_bar[t].float().view(-1, 1, 1, 1)
        return Parameterisation(mean_type, alphas_bar).target(x0_hat, (x_t - ab.sqrt() * x0_hat) / (1 - ab).sqrt(), t)

    value = trainer_of(model, mean_type=mean_type, loss='min_snr', min_snr_gamma=gamma)(X_0, t=STEPS, eps=EPS)
    snr = (alphas_bar / (1 - alphas_bar))[STEPS].float().view(-1, 1, 1, 1)
    torch.testing.assert_close(value, snr.clamp(max=gamma) * (X_0 - x0_hat) ** 2, rtol=1e-3, atol=1e-5)
    over = {'epsilon': snr, 'v': snr + 1, 'xstart': 1}
    if mean_type in over:
        plain = trainer_of(model, mean_type=mean_type)(X_0, t=STEPS, eps=EPS)
        torch.testing.assert_close(value, snr.clamp(max=gamma) / over[mean_type] * plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('options, message', [
    ({'var_type': 'learned'}, 'loss mse does not train var_type learned: it needs fixedlarge or fixedsmall'),
    ({'loss': 'min_snr', 'var_type': 'learned_range'}, 'loss min_snr does not train var_type learned_range'),
    ({'loss': 'hybrid'}, 'loss hybrid does not train var_type fixedlarge: it needs learned or learned_range'),
    ({'loss': 'huber'}, 'loss must be one of mse, kl, hybrid, min_snr'),
    ({'t_sampler': 'best'}, 't_sampler must be one of uniform, loss_aware'),
    ({'t_sampler': 'loss_aware', 'antithetic_t': True}, 'antithetic_t pairs uniform timesteps'),
    ({'min_snr_gamma': 0.0}, 'min_snr_gamma must be above 0'),
])  # fmt: skip
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(None, **options)


# --- the sampler of t


def test_both_samplers_of_t_estimate_the_same_bound():
    """The mean of T times a term is the sum of the terms' means, for uniform t and for t drawn by the losses."""
    x_0 = X_0[:1].expand(4000, -1, -1, -1)
    found = {}
    for name in ('uniform', 'loss_aware'):
        trainer = trainer_of(lambda x, t: 0.9 * x, loss='kl', t_sampler=name)
        torch.manual_seed(0)
        draws = torch.stack([trainer(x_0).mean((1, 2, 3)) for _ in range(6)])[1:]  # the first one fills the window
        found[name] = draws.mean().item(), (draws.std() / draws.numel() ** 0.5).item()
    exact = 0
    for step in range(T):
        t, eps = torch.full((1000,), step), torch.randn(1000, 3, 4, 4)
        exact += trainer_of(lambda x, t: 0.9 * x, loss='kl')(x_0[:1000], t=t, eps=eps).mean().item() / T
    for mean, error in found.values():
        assert abs(mean - exact) < 4 * error and error < 0.02 * exact
    assert found['loss_aware'][1] < 0.5 * found['uniform'][1]


def test_loss_aware_follows_the_second_moments():
    sampler = LossAware(4)
    assert sampler.probabilities().tolist() == [0.25] * 4
    losses = torch.tensor([8.0, 4.0, 2.0, 2.0])
    for _ in range(9):
        sampler.weigh(losses[:, None], torch.arange(4))
        sampler.draw(1, 'cpu')
    assert sampler.probabilities().tolist() == [0.25] * 4  # nine losses of each are too few
    sampler.weigh(losses[:, None], torch.arange(4))
    assert sampler.probabilities().tolist() == [0.25] * 4  # the tenth counts from the next draw on
    torch.manual_seed(0)
    t = sampler.draw(20_000, 'cpu')
    p = 0.999 * losses / 16 + 0.001 / 4
    torch.testing.assert_close(sampler.probabilities(), p)
    torch.testing.assert_close(torch.bincount(t, minlength=4) / 20_000, p, atol=0.015, rtol=0)
    weighed = sampler.weigh(losses[:, None], torch.arange(4))
    torch.testing.assert_close(weighed, losses[:, None] / (4 * p[:, None]))
    # The sampler remembers about ten losses: after many more, the old ones are forgotten.
    for _ in range(20):
        sampler.weigh(torch.ones(16, 1), torch.arange(4).repeat(4))
        sampler.draw(1, 'cpu')
    torch.testing.assert_close(sampler.probabilities(), torch.full((4,), 0.25), atol=1e-3, rtol=0)


def test_micro_batches_give_the_gradient_of_the_whole(tmp_path):
    gradients = []
    for parts in (1, 4):
        config = config_of(
            *TINY, f'--logdir={tmp_path}', f'--grad_accum={parts}', '--loss=kl', '--t_sampler=loss_aware'
        )
        run = train.Run(config)
        run.trainer.t_sampler.counts += 10
        run.trainer.t_sampler.moments += torch.arange(1.0, 9.0)
        torch.manual_seed(0)
        run.update(torch.linspace(-1, 1, 8 * 64).view(8, 1, 8, 8))
        gradients.append(torch.cat([p.grad.flatten() for p in run.trained]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_loss_aware_run_in_two_parts_equals_a_whole_one(tmp_path, cli):
    argv = [*TINY, '--train', '--t_sampler=loss_aware', '--loss=kl', '--batch_size=32', '--lr=0.01']
    assert cli(*argv, '--total_steps=12', f'--logdir={tmp_path / "whole"}')[0] == 0
    assert cli(*argv, '--total_steps=7', f'--logdir={tmp_path / "parts"}')[0] == 0
    assert cli(*argv, '--total_steps=12', f'--logdir={tmp_path / "parts"}')[0] == 0
    whole, parts = (without_logdir(load(tmp_path / name)) for name in ('whole', 'parts'))
    assert differences(whole, parts) == []
    p = copy.deepcopy(whole['t_sampler'])
    assert p['counts'].min() >= 10 and p['moments'].std() > 0  # it was no longer uniform
    del parts['t_sampler']
    torch.save(parts, tmp_path / 'parts' / 'ckpt.pt')  # from a uniform run: the sampler starts afresh
    assert cli(*argv, '--total_steps=13', f'--logdir={tmp_path / "parts"}')[0] == 0
    assert load(tmp_path / 'parts')['t_sampler']['pending'][0].sum() == 32


def test_compiled_in_float32(tmp_path, monkeypatch):
    """Compile as one graph that notes losses, but skip generating code, which takes a minute."""
    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend='aot_eager'))
    losses = []
    for compiled in ('off', 'on'):
        flags = ['--loss=hybrid', '--var_type=learned_range', '--t_sampler=loss_aware', f'--compile={compiled}']
        run = train.Run(config_of(*TINY, f'--logdir={tmp_path}', *flags))
        torch.manual_seed(0)
        losses.append([run.update(torch.linspace(-1, 1, 8 * 64).view(8, 1, 8, 8))[0].item() for _ in range(2)])
        losses[-1] += run.trainer.t_sampler.pending.flatten().tolist()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_a_step_was_it_still_is(tmp_path):
    """Write out the draws and the loss of mse with uniform t."""
    run = train.Run(config_of(*TINY, f'--logdir={tmp_path}'))
    net, x_0 = copy.deepcopy(run.net), torch.linspace(-1, 1, 512).view(8, 1, 8, 8)
    torch.manual_seed(0)
    loss, _ = run.update(x_0)
    torch.manual_seed(0)
    t, eps = torch.randint(8, size=(8,)), torch.randn_like(x_0)
    ab = build.trainer(run.config, net).chain.alphas_bar
    shaped = [v[t].float().view(-1, 1, 1, 1) for v in (ab.sqrt(), (1 - ab).sqrt())]
    expected = torch.nn.functional.mse_loss(net(shaped[0] * x_0 + shaped[1] * eps, t), eps, reduction='none').mean()
    assert torch.equal(loss, expected)
