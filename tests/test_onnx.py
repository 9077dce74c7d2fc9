"""Export networks and samplers for ONNX, and draw by them in NumPy as the code of docs/onnx.md does."""

import itertools
import json
import math
import re
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from runs import config_of, load, one_line

import interop
from draw.noise import NOISES, of_images
from interop import onnx_folder
from process.schedules import SCHEDULES
from run import build, labels
from run.config import replace
from run.errors import UsageError

onnxruntime = pytest.importorskip('onnxruntime', reason='needs requirements-test.txt')
CODE = re.search(r'```python\n(.*?)```', (ROOT / 'docs' / 'onnx.md').read_text(encoding='utf-8'), re.DOTALL)[1]
WIDE = ['--ch_mult=2', '--T=12']  # a second level, since TINY has one
# name -> flags and what the data decides of two small U-Nets.
MODELS = {
    'pytorch_ddpm': (
        ['--attn=1', '--head_dim=32', '--var_type=learned_range', '--loss=hybrid', '--guidance_interval=0.5,3'],
        {'num_classes': 3, 'class_names': ['a', 'b'], 'guidance': 2.5, 'labels': 'b,2,a'},
    ),
    'official': (
        ['--arch=official', '--mean_type=v', '--var_type=fixedsmall', '--clip_denoised', '--img_size=4x8'],
        {'channels': 3},
    ),
}  # fmt: skip


def made(*flags, **changes):
    """Return a config and its network with random weights."""
    config = replace(config_of(*TINY, *flags), **changes)
    torch.manual_seed(0)
    net = build.network(config).eval()
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    return config, net


@pytest.fixture(scope='module', params=MODELS)
def exported(request, tmp_path_factory):
    """Export a network, and return its config, the network and the names that the code of docs/onnx.md defines."""
    flags, decided = MODELS[request.param]
    config, net = made(*WIDE, *flags, **decided)
    folder = tmp_path_factory.mktemp('onnx') / 'export'
    assert interop.export(replace(config, export='onnx', out=str(folder)), net, 7) == str(folder)
    code = {'FOLDER': folder}
    exec(CODE, code)
    return config, net, code


@torch.no_grad()
def test_the_network_gives_what_torch_gives(exported):
    config, net, code = exported
    assert not list(code['FOLDER'].glob('*.data'))
    for n in (1, 3):
        x, t = torch.randn(n, *build.shape(config)), torch.tensor([0, 11, 5])[:n]
        y = torch.tensor([3, 0, 2])[:n] if config.num_classes else None  # 3: no label
        feeds = {'x': x.numpy(), 't': t.numpy(), **({} if y is None else {'y': y.numpy()})}
        assert {each.name for each in code['session'].get_inputs()} == set(feeds)
        (out,), expected = code['session'].run(['out'], feeds), net(x, t, y).numpy()
        assert out.shape == expected.shape == (n, (1 + (y is not None)) * config.channels, *build.shape(config)[1:])
        assert np.abs(out - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize('steps, order, eta', [(12, 1, 1.0), (10, 2, 0.0), (5, 2, 0.5), (10, 3, 0.0)])
def test_a_walk_by_the_rows_is_that_of_the_sampler(exported, steps, order, eta):
    config, net, code = exported
    (table,) = (each for each in code['sampler']['tables'] if (each['steps'], each['order'], each['eta'])
                == (steps, order, eta))  # fmt: skip
    drawn_as = config_of(*TINY, *table['flags'].split())
    config = replace(config, **{key: getattr(drawn_as, key) for key in ('sample_steps', 'order', 'eta', 'noise')})
    noise, y = of_images(config, range(3)), labels.of_indices(config, range(3))
    *_, (_, ours, _) = build.sampler(config, net).trajectory(noise(), y, noise=noise)
    theirs = code['draw'](table, 3, config.seed, None if y is None else y.numpy(), config.guidance)
    assert len(table['rows']) == steps and np.abs(ours.numpy() - theirs).max() < 1e-4 * ours.abs().max()


def test_the_file_says_what_the_model_is(exported):
    config, net, code = exported
    found = code['sampler']
    assert (found['weights'], found['step'], found['T'], found['mean_type']) == ('ema', 7, 12, config.mean_type)
    assert found['shape'] == list(build.shape(config)) and found['clip_x0'] == config.clip_denoised
    if config.num_classes:
        assert (found['class_names'], found['null_label']) == (['a', 'b', '2'], 3) and found['learns_variance']
        alphas_bar = np.cumprod(1 - np.linspace(config.beta_1, config.beta_T, 12))
        sigma = np.sqrt(1 / alphas_bar - 1)
        assert found['guided'] == ((sigma > 0.5) & (sigma <= 3)).tolist() and len(set(found['guided'])) == 2
    else:
        assert (found['class_names'], found['null_label'], found['guided']) == ([], None, None)
    keys = [(each['steps'], each['order'], each['eta']) for each in found['tables']]
    plain = itertools.product((5, 10), (1, 2), (0.0, 0.5, 1.0))
    assert keys[0] == (12, 1, 1.0) and sorted(keys[1:]) == sorted([*plain, (5, 3, 0.0), (10, 3, 0.0)])


@pytest.mark.parametrize('mean_type', ['epsilon', 'xstart', 'xprev', 'v'])
def test_x0_follows_from_the_output_in_float64(mean_type):
    config = config_of(*TINY, f'--mean_type={mean_type}', '--schedule=cosine', '--eps_scale=1.01')
    found, betas = onnx_folder.describe(config), SCHEDULES['cosine'](0, 0, config.T).numpy()
    alphas_bar = np.cumprod(1 - betas)
    before = np.append(1, alphas_bar[:-1])
    x_0, eps = np.random.default_rng(0).standard_normal((2, config.T))
    x_t = np.sqrt(alphas_bar) * x_0 + np.sqrt(1 - alphas_bar) * eps
    mean = (np.sqrt(before) * betas * x_0 + np.sqrt(1 - betas) * (1 - before) * x_t) / (1 - alphas_bar)  # paper eq. 7
    v = np.sqrt(alphas_bar) * eps - np.sqrt(1 - alphas_bar) * x_0
    out = {'epsilon': eps, 'xstart': x_0, 'xprev': mean, 'v': v}[mean_type]
    x0_hat = found['from_out'] * out + found['from_x_t'] * x_t
    # x_0 = (x_t - sigma eps / 1.01) / alpha, with the eps that the exact x_0 has
    scaled = (x_t - np.sqrt(1 - alphas_bar) * eps / 1.01) / np.sqrt(alphas_bar)
    np.testing.assert_allclose(x0_hat, scaled, rtol=1e-9, atol=1e-9)


def test_tables_of_every_schedule_and_solver_are_finite():
    for schedule, order in itertools.product(SCHEDULES, (1, 2, 3)):
        flags = ['--T=20', f'--schedule={schedule}', f'--order={order}', '--eta=0', '--mean_type=v', '--corrector']
        found = onnx_folder.describe(config_of(*TINY, *flags))
        assert json.loads(json.dumps(found, allow_nan=False))['tables'][0]['corrector']
    chosen = onnx_folder.describe(config_of(*TINY, '--timesteps=7,3,0'))['tables'][0]
    assert [row['t'] for row in chosen['rows']] == [7, 3, 0] and '--timesteps=7,3,0' in chosen['flags'].split()


def test_the_command_exports_the_weights_that_it_names(tmp_path, cli, monkeypatch):
    run = tmp_path / 'run'
    points = [*TINY, '--dataset=moons', '--net=point_mlp', '--lr=0.01', f'--logdir={run}']
    assert cli(*points, '--train')[0] == 0
    status, out, error = cli('--export=onnx', f'--logdir={run}', '--precision=fp32')
    assert status == 0 and 'the ema weights of step 4' in out, error
    assert [line.split(':')[0] for line in error.splitlines()] == ['WARNING', 'INFO']  # of few steps, and of the wait
    monkeypatch.setattr(onnx_folder, 'LARGEST_FILE', 0)
    assert cli('--export=onnx', f'--logdir={run}', '--weights=net', f'--out={tmp_path / "net"}')[0] == 0
    assert (tmp_path / 'net' / 'network.onnx.data').stat().st_size > 1000
    x, t = torch.randn(3, 2), torch.tensor([0, 3, 7])
    for kind, folder in (('ema', run / 'onnx'), ('net', tmp_path / 'net')):
        net = build.network(replace(config_of(*points), channels=2))
        net.load_state_dict(load(run)[f'{kind}_model'])
        session = onnxruntime.InferenceSession(folder / 'network.onnx')
        (out,) = session.run(None, {'x': x.numpy(), 't': t.numpy()})
        np.testing.assert_allclose(out, net(x, t).detach(), rtol=1e-5, atol=1e-5)
        found = json.loads((folder / 'sampler.json').read_text())
        assert (found['weights'], found['step'], found['shape']) == (kind, 4, [2])
    status, _, error = cli('--export=onnx', f'--logdir={run}')
    assert status == 1 and 'is there already' in one_line(error)


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(tmp_path, cli, monkeypatch):
    run = tmp_path / 'run'
    assert cli(*TINY, '--train', '--prior=data', f'--logdir={run}')[0] == 0
    status, _, error = cli('--export=onnx', f'--logdir={run}')
    assert status == 2 and '--prior=data cannot be exported' in one_line(error)
    status, _, error = cli('--export=onnx', f'--logdir={run}', f'--guide_by={run}', '--guidance=2')
    assert status == 2 and '--guide_by is for drawing' in one_line(error)  # an export has one network

    def branching(self, x, t, y=None):
        return x if x.sum() > 0 else -x

    monkeypatch.setattr('model.UNet.forward', branching)
    status, _, error = cli('--export=onnx', f'--logdir={run}', '--prior=standard')
    assert status == 1 and 'torch cannot write this network as ONNX' in one_line(error)
    assert not [path.name for path in run.iterdir() if 'onnx' in path.name]


def test_a_missing_package_is_named_before_anything_is_done(tmp_path, cli, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    status, _, error = cli(*TINY, '--train', '--export=onnx', f'--logdir={tmp_path / "run"}')
    assert status == 1 and 'pip install -r requirements-onnx.txt' in one_line(error)
    assert not (tmp_path / 'run').exists()


def philox(counter, key):
    """Return the four words of Philox-4x64-10 (Salmon et al. 2011, section 3.3)."""
    c, k = [counter, 0, 0, 0], list(key)
    for _ in range(10):
        high_0, low_0 = divmod(0xD2E7470EE14C6C93 * c[0], 2**64)
        high_1, low_1 = divmod(0xCA5A826395121157 * c[2], 2**64)
        c = [high_1 ^ c[1] ^ k[0], low_1, high_0 ^ c[3] ^ k[1], low_0]
        k = [(k[0] + 0x9E3779B97F4A7C15) % 2**64, (k[1] + 0xBB67AE8584CAA73B) % 2**64]
    return c


def test_philox_noise_is_that_of_the_paper():
    # The first of the known answers that Random123, the authors' library, comes with.
    known = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox(0, (0, 0)) == known
    seed, shape = 2**64 - 1, (1, 3, 5)
    noise = NOISES['philox'](seed, [9, 2], shape, torch.device('cpu'))
    drawn = torch.stack([noise(), noise()], dim=1)  # [image, draw, 1, 3, 5]
    for i, index in enumerate((9, 2)):
        words = itertools.chain.from_iterable(philox(counter, (seed, index)) for counter in itertools.count(1))
        u = (((word >> 11) + 1) / 2**53 for word in words)
        expected = [math.sqrt(-2 * math.log(next(u))) * math.cos(2 * math.pi * next(u)) for _ in range(30)]
        np.testing.assert_allclose(drawn[i].flatten(), expected, rtol=1e-6, atol=1e-7)


def test_philox_noise_is_normal():
    z = NOISES['philox'](0, range(64), (1, 32, 32), torch.device('cpu'))().double()
    moments = [z.mean(), z.var() - 1, (z**3).mean(), (z**4).mean() - 3]  # of 65,536 numbers: five standard errors
    assert all(abs(value) < 5 * (m / z.numel()) ** 0.5 for value, m in zip(moments, (1, 2, 15, 96), strict=True))
    assert (torch.corrcoef(z.flatten(1)) - torch.eye(64)).abs().max() < 6 / 32


def test_noise_by_philox_is_drawn_and_told_apart(tmp_path, cli):
    run = [f'--logdir={tmp_path}', '--device=cpu', '--precision=fp32', '--num_images=3']
    assert cli(*TINY, '--train', f'--logdir={tmp_path}')[0] == 0
    shown = {}
    for name, more in {'torch': [], 'philox': ['--noise=philox'], 'again': ['--noise=philox']}.items():
        status, out, error = cli('--sample', *run, *more, f'--sample_batch_size={2 + len(shown)}')
        assert status == 0, error
        assert (f'of other noise: they are in {tmp_path / "samples.prev"}' in out) == (name == 'philox')
        shown[name] = [(tmp_path / 'samples' / f'{i:06d}.png').read_bytes() for i in range(3)]
        if name == 'philox':
            (tmp_path / 'samples' / '000001.png').unlink()
    assert shown['philox'] == shown['again'] and shown['philox'] != shown['torch']
    status, _, error = cli('--sample', *run, f'--seed={2**64}')
    assert status == 2 and '--seed' in one_line(error)
    with pytest.raises(UsageError, match='noise must be one of torch, philox, not dice'):
        of_images(config_of(*TINY), [0]) and of_images(replace(config_of(*TINY), noise='dice'), [0])
