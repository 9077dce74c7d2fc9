"""Each picture of a diffusion, from a digits checkpoint, tile by tile against what it should show."""

from pathlib import Path

import numpy as np
import pytest
import torch
from absl.testing import flagsaver
from conftest import TINY
from PIL import Image
from runs import config_of, one_line, scalars

import build
import figure
import main
import sample

LEFT = {'progressive': 48, 'forward': 30, 'guidance': 18, 'interpolate': 42}  # of the names, in pixels
TOP, TILE = 16, 66  # of the titles; an image of 64 pixels and its padding


@pytest.fixture(scope='module')
def logdir(tmp_path_factory):
    """A conditional run in digits/, an unconditional one in free/ and one of points in points/."""
    folder = tmp_path_factory.mktemp('runs')
    wide = [flag.replace('--ch_mult=1', '--ch_mult=2') for flag in TINY]
    points = ['--dataset=moons', '--net=point_mlp']
    for name, extra in {'digits': ['--cond', '--T=20'], 'free': [], 'points': points}.items():
        argv = ['main.py', *wide, '--train', '--lr=0.02', '--ema_decay=0', *extra, f'--logdir={folder / name}']
        with flagsaver.flagsaver():
            assert main.main(main.parse_flags(argv)) == 0
    return folder


@pytest.fixture
def draw(logdir, tmp_path, cli):
    """draw(kind, *flags) -> its tiles, uint8 [rows, columns, 8, 8]."""

    def run(kind, *flags):
        argv = [f'--figure={kind}', f'--logdir={logdir / "digits"}', '--precision=fp32', f'--out={tmp_path}', *flags]
        status, out, _ = cli(*argv)
        path = tmp_path / f'{kind}.png'
        assert status == 0 and str(path) in out
        pixels = np.asarray(Image.open(path))
        assert pixels.any(axis=(0, 2))[: LEFT[kind]].any() and pixels[:TOP].any()  # names and titles
        rows, columns = (pixels.shape[0] - TOP) // TILE, (pixels.shape[1] - LEFT[kind]) // TILE
        corners = ((TOP + 2 + TILE * i, LEFT[kind] + 2 + TILE * j) for i in range(rows) for j in range(columns))
        tiles = [pixels[y : y + 64 : 8, x : x + 64 : 8, 0] for y, x in corners]
        return np.stack(tiles).reshape(rows, columns, 8, 8).astype(int)

    return run


def restored(logdir, *flags):
    argv = [f'--logdir={logdir / "digits"}', '--precision=fp32', '--num_images=4', *flags]
    given = {flag.lstrip('-').partition('=')[0] for flag in flags}
    config, net, _ = sample.restore(config_of(*argv), given)
    return config, net


def uint8(x):
    return ((x.clamp(-1, 1) + 1) * 127.5 + 0.5).squeeze(1).int().numpy()


def test_progressive_goes_from_the_noise_to_the_samples(logdir, draw):
    tiles = draw('progressive')
    assert tiles.shape == (8, 10, 8, 8)
    config, net = restored(logdir)
    ((_, x_0),) = sample.draw(config, net, [0, 1, 2, 3])
    noise = sample.Noise(0, range(4), (1, 8, 8), torch.device('cpu'))()
    for i in range(4):
        x_t, x0_hat = tiles[2 * i], tiles[2 * i + 1]
        assert abs(x_t[0] - uint8(noise)[i]).max() <= 1 and abs(x_t[-1] - uint8(x_0)[i]).max() <= 1
        assert np.array_equal(x_t[-1], x0_hat[-1]) and abs(x_t[3] - x0_hat[3]).max() > 1
        assert len({tile.tobytes() for tile in x_t}) == 10


def test_progressive_of_few_steps_shows_them_all(draw):
    assert draw('progressive', '--sample_steps=4', '--num_images=2').shape == (4, 5, 8, 8)


def test_forward_goes_from_the_data_to_noise(logdir, draw):
    tiles = draw('forward')
    assert tiles.shape == (4, 10, 8, 8)
    config, _ = restored(logdir)
    real = build.some(config, build.dataset(config), 4)
    assert np.array_equal(tiles[:, 0], uint8(real))
    likeness = [np.corrcoef(tiles[:, j].ravel(), tiles[:, 0].ravel())[0, 1] for j in range(10)]
    assert likeness[1] > 0.9 and abs(likeness[-1]) < 0.3 and sorted(likeness[:5], reverse=True) == likeness[:5]


def test_guidance_is_of_each_label_and_weight_from_one_noise(logdir, draw):
    tiles = draw('guidance')
    assert tiles.shape == (10, 5, 8, 8) and figure.WEIGHTS == (0, 1, 2, 5, 10)
    for column, w in enumerate(figure.WEIGHTS):
        config, net = restored(logdir, f'--guidance={w}', '--labels=7')
        ((_, x_0),) = sample.draw(config, net, [0])
        assert abs(tiles[7, column] - uint8(x_0)[0]).max() <= 1, w
    assert abs(tiles[:, 0] - tiles[0, 0]).max() <= 1  # unconditional: the noise alone
    assert abs(tiles[3, 1] - tiles[7, 1]).max() > 1
    assert draw('guidance', '--labels=3,5').shape == (2, 5, 8, 8)


def test_interpolation_lies_between_two_real_images(logdir, draw):
    near = draw('interpolate', '--figure_t=1')
    assert near.shape == (4, 13, 8, 8)
    config, _ = restored(logdir)
    real = uint8(build.some(config, build.dataset(config), 8))
    assert np.array_equal(near[:, 0], real[:4]) and np.array_equal(near[:, -1], real[4:])
    middle = (near[:, 0] + near[:, -1]) / 2
    assert abs(near[:, 6] - middle).mean() < abs(near[:, 1] - middle).mean()  # after one noising: nearly the mean
    far = draw('interpolate', '--figure_t=20')
    assert abs(far[:, 1] - real[:4]).mean() > 2 * abs(near[:, 1] - real[:4]).mean()
    steps = [abs(far[:, j + 1] - far[:, j]).mean() for j in range(1, 11)]
    assert max(steps) < abs(far[:, 11] - far[:, 1]).mean()  # the same noise for every lambda


def test_figures_go_to_tensorboard_too_and_lie_beside_the_checkpoint(logdir, cli):
    assert cli('--figure=forward', f'--logdir={logdir / "digits"}')[0] == 0
    folder = logdir / 'digits' / 'figures'
    assert (folder / 'forward.png').exists() and list(scalars(folder, 'figure/forward')) == [4]  # the step


@pytest.mark.parametrize('run, flags, phrase', [
    ('points', ['--figure=progressive'], '--figure=progressive is of images'),
    ('points', ['--figure=interpolate'], '--figure=interpolate is of images'),
    ('free', ['--figure=guidance'], '--figure=guidance needs a checkpoint trained with --cond'),
    ('digits', ['--figure=interpolate', '--figure_t=21'], '--figure_t=21: the checkpoint has T = 20 steps'),
    ('digits', ['--figure=spiral'], 'progressive|forward|guidance|interpolate'),
])  # fmt: skip
def test_a_figure_that_cannot_be_is_one_line(logdir, tmp_path, cli, run, flags, phrase):
    status, _, error = cli(*flags, f'--logdir={logdir / run}', f'--out={tmp_path / "out"}')
    assert status == 2 and phrase in error.strip().splitlines()[-1] and not Path(tmp_path / 'out').exists()


def test_an_interrupted_figure_writes_nothing(logdir, tmp_path):
    for kind in ('progressive', 'guidance', 'interpolate'):
        config, net = restored(logdir)
        config.figure, config.out = kind, str(tmp_path / kind)
        figure.figure(config, net, 4, lambda: True)
        assert not (tmp_path / kind).exists()


def test_images_of_another_kind_are_refused(logdir, cli, folder_of_images):
    argv = ['--figure=interpolate', f'--logdir={logdir / "digits"}', f'--dataset={folder_of_images}']
    status, _, error = cli(*argv)
    assert status == 1 and 'are in colour, those of the checkpoint grey: --channels=1 takes' in one_line(error)
