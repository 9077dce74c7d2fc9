"""The diffusion of points: the same commands, trainer and sampler as for images."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from PIL import Image
from runs import config_of, load, scalars
from scipy.stats import wasserstein_distance

import dataset
from draw import picture, walk
from run import build, inputs
from run.restore import restore
from score import sliced_wasserstein

POINTS = ['--dataset=moons', '--net=point_mlp', '--T=12', '--batch_size=500', '--sample_size=50']


def test_the_sliced_wasserstein_distance():
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.normal(size=(300, 2)) @ rng.normal(size=(2, 2))) for _ in range(2))
    directions = [np.array([math.cos(angle), math.sin(angle)]) for angle in np.arange(128) * math.pi / 128]
    expected = np.mean([wasserstein_distance(a.numpy() @ u, b.numpy() @ u) for u in directions])
    assert sliced_wasserstein(a, b) == pytest.approx(expected, rel=1e-9)
    assert sliced_wasserstein(a, a[torch.randperm(300)]) == 0
    # Moved by v, a projection moves by v . theta, whose mean over the directions is 2 |v| / pi.
    assert sliced_wasserstein(a, a + torch.tensor([3.0, 4.0])) == pytest.approx(2 * 5 / math.pi, rel=1e-3)
    with pytest.raises(ValueError, match=r'must be \[N, 2\]'):
        sliced_wasserstein(a, torch.zeros(5, 3))


def test_the_s_curve_comes_near_the_data_after_few_steps(tmp_path, cli):
    """A twentieth of the training gives 0.014, nearer than a normal distribution with the data's moments."""
    argv = [f'--flagfile={ROOT / "config" / "S_CURVE.txt"}', '--train', '--eval', '--device=cpu', '--sample_step=0']
    argv += ['--lr=0.003', '--ema_decay=0.99']
    distance = {}
    for steps in (1, 2000):
        status, out, _ = cli(*argv, f'--total_steps={steps}', f'--logdir={tmp_path / str(steps)}')
        assert status == 0 and 'sliced Wasserstein distance' in out
        record = json.loads((tmp_path / str(steps) / 'eval.txt').read_text())
        assert record['n'] == 10000 and record['SW_data'] == pytest.approx(1.24e-3, rel=0.01)
        distance[steps] = record['SW']
    train, test = (dataset.load('s_curve', '', 0, split).x for split in ('train', 'test'))
    torch.manual_seed(0)
    normal = train.mean(0) + torch.randn(10000, 2) @ torch.linalg.cholesky(torch.cov(train.T)).T
    assert distance[2000] < 0.9 * sliced_wasserstein(normal, test) < distance[1]


@pytest.fixture
def logdir(tmp_path, cli):
    argv = [*TINY, *POINTS, '--train', '--cond', '--sample_step=2', '--eval_step=4']
    assert cli(*argv, f'--logdir={tmp_path / "run"}')[0] == 0
    return tmp_path / 'run'


def test_training_writes_what_it_does_of_images(logdir, cli):
    state = load(logdir)
    assert state['x_T'].shape == (50, 2) and state['net_model']['label_embeddings.0.weight'].shape == (3, 32)
    assert Image.open(logdir / 'sample' / '2.png').size == Image.open(logdir / 'sample' / '4.png').size
    assert list(scalars(logdir, 'sample')) == [2, 4] and list(scalars(logdir, 'SW_EMA')) == [4]
    record = json.loads((logdir / 'eval.txt').read_text())  # both distances are of as many points
    train, test = (dataset.load('moons', '', 0, split).x for split in ('train', 'test'))
    assert record['n'] < 100 and record['SW_data'] == sliced_wasserstein(train[: record['n']], test)
    assert cli(f'--flagfile={logdir / "flagfile.txt"}', '--train', '--total_steps=6')[0] == 0
    assert load(logdir)['step'] == 6


def test_what_sampling_writes(logdir, cli, monkeypatch):
    drawn, panels = [], picture._panels
    monkeypatch.setattr(picture, '_panels', lambda *args: drawn.append(panels(*args)) or drawn[-1])
    argv = ['--sample', f'--logdir={logdir}', '--num_images=100', '--guidance=2']
    status, out, _ = cli(*argv)
    assert status == 0 and '100 points' in out
    file = np.load(logdir / 'samples' / 'points.npz')
    assert file['points'].shape == (100, 2) and file['points'].dtype == np.float32
    assert file['labels'].tolist() == [0, 1] * 50
    width, height = Image.open(logdir / 'samples' / 'figure.png').size
    assert 4 * height < width < 5 * height  # ten columns of two panels, with arrows
    ((figure, axes),) = drawn
    assert axes.shape == (2, 10) and len({(ax.get_xlim(), ax.get_ylim()) for ax in axes.flat}) == 1  # all on one scale
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ['forward $q$', 'reverse $p$']
    assert [arrow.get_arrowstyle().__class__.__name__ for arrow in figure.artists] == ['CurveB', 'CurveA']
    assert cli(*argv)[0] == 0
    status, out, _ = cli(*argv, '--seed=1')
    assert status == 0 and 'held samples of other seed' in out
    assert np.array_equal(np.load(logdir / 'samples.prev' / 'points.npz')['points'], file['points'])
    status, _, error = cli(*argv, '--seed=2', '--dataset=missing.npz')
    assert status == 1 and 'missing.npz is no file' in error
    assert json.loads((logdir / 'samples' / 'samples.json').read_text())['seed'] == 1  # nothing was set aside


def test_point_i_does_not_depend_on_the_batch(logdir):
    config, net, _ = restore(config_of(f'--logdir={logdir}', '--precision=fp32'), set())
    drawn = []
    for size in (150, 64, 7):
        config.sample_batch_size = size
        drawn.append(torch.cat([x_0 for _, x_0 in walk.draw(config, net, list(range(150)))]))
        torch.testing.assert_close(drawn[-1], drawn[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('argv, phrase', [
    (['--dataset=s_curve', '--net=unet'], '--net=unet is not for s_curve: use --net=point_mlp'),
    (['--dataset=digits'], '--net=point_mlp is not for digits: use --net=unet or context_unet'),
    (['--dataset=s_curve', '--cond'], '--cond with 0 classes: s_curve has 0'),
    (['--notrain', '--stats'], 'moons is of points'),
])  # fmt: skip
def test_what_points_cannot_be(tmp_path, cli, argv, phrase):
    status, _, error = cli(*TINY, *POINTS, '--train', f'--logdir={tmp_path / "run"}', *argv)
    assert status == 1 and phrase in error.strip().splitlines()[-1] and not (tmp_path / 'run').exists()


def test_a_prior_of_the_data(logdir, tmp_path, cli):
    """x_T has the data's moments, for chains that end with too little noise; the checkpoint holds them."""
    status, _, error = cli('--sample', f'--logdir={logdir}', '--prior=data')
    assert status == 2 and '--prior=data needs a checkpoint trained with it' in error
    short = [*TINY, *POINTS, '--beta_T=0.002', '--prior=data', '--train', f'--logdir={tmp_path / "short"}']
    assert cli(*short)[0] == 0
    config, net, _ = restore(config_of(f'--logdir={tmp_path / "short"}'), set())
    sampler = build.sampler(config, net)
    seen = []
    list(walk.draw(config, net, list(range(128)), observe=lambda t, x_t, x0_hat: seen.append(x_t)))
    alphas_bar = sampler.alphas_bar[-1]
    x = inputs.dataset(config).x
    expected = (1 - alphas_bar + alphas_bar * x.var(0)).sqrt()
    assert alphas_bar > 0.98 and (seen[0].std(0) / expected - 1).abs().max() < 0.2
