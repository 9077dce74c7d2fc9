"""Autoguidance: a weaker network in place of "no label"."""

import shutil

import numpy as np
import pytest
import torch
from absl.testing import flagsaver
from conftest import TINY
from runs import config_of, load, one_line

import main
from diffusion import GaussianDiffusionSampler, Guidance
from draw.inference import Inference
from draw.noise import Noise
from draw.picture import to_uint8
from process.parameterisations import PARAMETERISATIONS
from run import build
from run.labels import of_indices
from run.restore import restore

T = 10
X = torch.randn(4, 1, 2, 3, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 2])


def network(scale, channels=1):
    """Return a network whose output depends on x_t, t and y, with more channels after those of x_t if asked for."""

    def net(x_t, t, y=None):
        y = torch.full_like(t, 7) if y is None else y
        out = scale * x_t + (t + y).view(-1, 1, 1, 1) / 10
        return torch.cat([out * (k + 1) for k in range(channels)], dim=1)

    return net


def chain(model, y, **options):
    sampler = GaussianDiffusionSampler(model, 0.01, 0.3, T, 8, **options)
    torch.manual_seed(2)
    return list(sampler.trajectory(X, y))[-1][1]


@pytest.mark.parametrize('y', [Y, None])
@pytest.mark.parametrize('mean_type', PARAMETERISATIONS)
def test_it_is_two_networks_combined(mean_type, y):
    net, weak, options = network(0.9), network(0.2), {'mean_type': mean_type, 'steps': 5}

    def by_hand(x_t, t, y=None):
        return 2.5 * net(x_t, t, y) - 1.5 * weak(x_t, t, y)

    guided = chain(Guidance(net, 2.5, guide=weak), y, **options)
    torch.testing.assert_close(guided, chain(by_hand, y, **options), rtol=1e-5, atol=1e-5)
    assert torch.equal(chain(Guidance(net, 1, guide=weak), y, **options), chain(net, y, **options))
    assert torch.equal(chain(Guidance(net, 0, guide=weak), y, **options), chain(weak, y, **options))
    assert torch.equal(chain(Guidance(net, 2, guide=net), y, **options), chain(net, y, **options))


def test_an_interval_guides_its_own_timesteps_alone_and_the_variance_is_the_networks():
    net, weak, guided = network(0.9, channels=2), network(0.2, channels=2), torch.arange(T) > 4
    t = torch.tensor([0, 9, 4, 5])
    out = Guidance(net, 3, guided=guided, guide=weak)(X, t, Y)
    expected = torch.where((t > 4).view(-1, 1, 1, 1), 3 * net(X, t, Y) - 2 * weak(X, t, Y), net(X, t, Y))
    torch.testing.assert_close(out[:, :1], expected[:, :1])
    assert torch.equal(out[:, 1:], net(X, t, Y)[:, 1:])


@pytest.mark.parametrize('guide', [None, network(0.2, channels=2)])
def test_what_a_weight_of_0_gives_does_not_depend_on_the_batch(guide):
    net, t = network(0.9, channels=2), torch.tensor([0, 9, 4, 5])
    guidance = Guidance(net, 0, null_label=7, guided=torch.arange(T) > 4, guide=guide)
    one_by_one = [guidance(X[i : i + 1], t[i : i + 1], Y[i : i + 1]) for i in range(4)]
    assert torch.equal(guidance(X, t, Y), torch.cat(one_by_one))
    weaker = guide(X, t, Y) if guide else net(X, t)
    assert torch.equal(torch.cat(one_by_one)[[1, 3]], weaker[[1, 3]])  # the variance, too, is of the weaker one


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Train networks that draw something: two with labels, one without, and some that do not fit the first."""
    folder = tmp_path_factory.mktemp('runs')
    kinds = {
        'strong': ['--cond'],
        'weak': ['--cond', '--ch=64', '--attn=0', '--seed=1'],
        'free': [],
        'free_weak': ['--seed=2'],
        'schedule': ['--cond', '--schedule=cosine'],
        'v': ['--cond', '--mean_type=v'],
        'learned': ['--cond', '--var_type=learned_range', '--loss=hybrid'],
        'wide': ['--cond', '--img_size=8x16'],
    }
    for name, argv in kinds.items():
        with flagsaver.flagsaver():
            words = [*TINY, '--train', '--lr=0.02', '--ema_decay=0', f'--logdir={folder / name}', *argv]
            assert main.main(main.parse_flags(['main.py', *words])) == 0
    return folder


def drawn(cli, out, *argv):
    status, said, error = cli('--sample', '--num_images=6', '--precision=fp32', f'--out={out}', *argv)
    assert status == 0, error
    return np.load(out / 'samples.npz')['arr_0'].astype(int), said


@pytest.mark.parametrize('strong, weak, labels', [('strong', 'weak', ['--labels=3']), ('free', 'free_weak', [])])
def test_samples_are_of_both_networks(runs, tmp_path, cli, strong, weak, labels):
    argv = [f'--logdir={runs / strong}', *labels]
    by = f'--guide_by={runs / weak}'
    guided, _ = drawn(cli, tmp_path / 'a', *argv, '--guidance=3', by)
    config, net, _ = restore(config_of(*argv, '--precision=fp32'), {'precision'})
    _, other, _ = restore(config_of(f'--logdir={runs / weak}', *labels, '--precision=fp32'), {'precision'})
    nets = [Inference(each, torch.float32) for each in (net, other)]

    def by_hand(x_t, t, y=None):
        return 3 * nets[0](x_t, t, y) - 2 * nets[1](x_t, t, y)

    sampler = GaussianDiffusionSampler(by_hand, config.beta_1, config.beta_T, config.T)
    noise = Noise(0, range(6), build.shape(config), torch.device('cpu'))
    x_0 = sampler(noise(), of_indices(config, range(6)), noise)
    assert np.abs(guided - to_uint8(x_0).permute(0, 2, 3, 1).numpy().astype(int)).max() <= 1
    plain, _ = drawn(cli, tmp_path / 'b', *argv)
    assert np.abs(guided - plain).max() > 20
    assert np.array_equal(drawn(cli, tmp_path / 'c', *argv, '--guidance=1', by)[0], plain)
    assert np.array_equal(drawn(cli, tmp_path / 'd', *argv, '--guidance=2', f'--guide_by={runs / strong}')[0], plain)
    weakly, _ = drawn(cli, tmp_path / 'e', *argv, '--guidance=0', f'--guide_by={runs / weak / "ckpt.pt"}')
    assert np.array_equal(weakly, drawn(cli, tmp_path / 'f', f'--logdir={runs / weak}', *labels)[0])


def test_samples_belong_to_the_guides_weights_and_labels_count_at_0(runs, tmp_path, cli):
    shutil.copytree(runs / 'weak', tmp_path / 'guide')
    argv = [f'--logdir={runs / "strong"}', '--guidance=0', f'--guide_by={tmp_path / "guide"}']
    before, _ = drawn(cli, tmp_path / 'out', *argv)
    assert np.load(tmp_path / 'out' / 'samples.npz')['arr_1'].tolist() == list(range(6))
    state = load(tmp_path / 'guide')
    state['ema_model']['tail.2.bias'] += 1
    torch.save(state, tmp_path / 'guide' / 'ckpt.pt')
    after, said = drawn(cli, tmp_path / 'out', *argv)
    assert 'held samples of other weights' in said and not np.array_equal(before, after)


def test_scores_and_figures_say_so(runs, tmp_path, cli):
    by = [f'--guide_by={runs / "free_weak"}', '--sample_steps=2', f'--logdir={runs / "free"}']
    status, out, error = cli('--figure=guidance', f'--out={tmp_path}', '--num_images=2', *by)
    assert status == 0 and (tmp_path / 'guidance.png').exists(), error
    assert cli('--nll', '--guidance=2', '--nll_steps=2', *by)[0] == 0
    assert '"guide_by": ' in (runs / 'free' / 'nll.txt').read_text()


@pytest.mark.parametrize('by, flags, phrase', [
    ('weak', [], '--guide_by needs a --guidance other than 1, such as --guidance=2'),
    ('schedule', ['--guidance=2'], '--schedule=linear (trained with cosine)'),
    ('v', ['--guidance=2'], '--mean_type=epsilon (trained with v)'),
    ('learned', ['--guidance=2'], '--var_type=fixedlarge (trained with learned_range)'),
    ('wide', ['--guidance=2'], '--img_size=8 (trained with 8x16)'),
    ('free', ['--guidance=2'], '--num_classes=10 (trained with 0)'),
    ('weak', ['--guidance=2', '--export=diffusers'], '--guide_by is for drawing'),
    ('weak', ['--guidance=2', '--train', *TINY, '--cond'], '--guide_by is for drawing'),
])  # fmt: skip
def test_a_guide_that_does_not_fit(runs, tmp_path, cli, by, flags, phrase):
    argv = ['--sample', f'--logdir={runs / "strong"}', f'--out={tmp_path}', f'--guide_by={runs / by}']
    status, _, error = cli(*argv, *flags)
    assert status == 2 and phrase in one_line(error)
    assert not list(tmp_path.iterdir())


def test_a_guide_with_other_classes_or_none_at_all(runs, tmp_path, cli):
    shutil.copytree(runs / 'weak', tmp_path / 'cats')
    state = load(tmp_path / 'cats')
    state['config']['class_names'] = ['cat', *state['config']['class_names'][1:]]
    torch.save(state, tmp_path / 'cats' / 'ckpt.pt')
    argv = ['--sample', f'--logdir={runs / "strong"}', f'--out={tmp_path / "out"}', '--guidance=2']
    status, _, error = cli(*argv, f'--guide_by={tmp_path / "cats"}')
    assert status == 2 and 'classes 0 1 2 ... 9 (trained with cat 1 2 ... 9)' in one_line(error)
    status, _, error = cli(*argv, f'--guide_by={tmp_path / "none"}')
    assert status == 1 and str(tmp_path / 'none') in one_line(error)
    (tmp_path / 'noise.pt').write_bytes(b'noise')
    status, _, error = cli(*argv, f'--guide_by={tmp_path / "noise.pt"}')
    assert status == 1 and 'noise.pt' in one_line(error)
    assert not (tmp_path / 'out').exists()
