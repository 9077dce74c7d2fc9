"""Draw each picture of a diffusion from a digits checkpoint, and check tile by tile what it shows."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from absl.testing import flagsaver
from conftest import TINY
from PIL import Image
from runs import config_of, one_line, scalars

import dataset
import figure
import main
from dataset import loader
from draw import picture, walk
from draw.noise import Noise
from run import inputs
from run.reference import load_feature_net
from run.restore import restore

TOP, PITCH = 25, 64 + picture.GAP  # height of the titles; distance from one 64-pixel image to the next


@pytest.fixture(scope='module')
def logdir(tmp_path_factory):
    """Train a conditional run in digits/, an unconditional one in free/ and one of points in points/."""
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
    """Return draw(kind, rows, columns, *flags, group=None) -> a picture's tiles, uint8 [rows, columns, 8, 8]."""

    def run(kind, rows, columns, *flags, group=None):
        argv = [f'--figure={kind}', f'--logdir={logdir / "digits"}', '--precision=fp32', f'--out={tmp_path}', *flags]
        status, out, _ = cli(*argv)
        path = tmp_path / f'{kind}.png'
        assert status == 0 and str(path) in out
        pixels = np.asarray(Image.open(path))
        left = pixels.shape[1] - picture.MARGIN - picture.GAP - columns * PITCH
        tops = [TOP + PITCH * i + (picture.GAP + picture.APART) * (i // (group or rows)) for i in range(rows)]
        assert 2 * picture.MARGIN < left < 80 and pixels.shape[0] == tops[-1] + PITCH + picture.GAP + picture.MARGIN
        shades = [pixels[y : y + PITCH, :left] for y in tops] + [
            pixels[:TOP, left + PITCH * j : left + PITCH * (j + 1)] for j in range(columns)
        ]
        assert all(part.min() < 100 and np.median(part) == 255 for part in shades)  # dark names and titles on white
        tiles = []
        for y in tops:
            for x in range(left, left + columns * PITCH, PITCH):
                whole = pixels[y : y + PITCH + picture.GAP, x : x + PITCH + picture.GAP, 0]
                inside = whole[picture.GAP : -picture.GAP, picture.GAP : -picture.GAP]
                tiles.append(inside[::8, ::8])
                framed = np.pad(np.kron(tiles[-1], np.ones((8, 8))), picture.GAP, constant_values=255)
                assert np.array_equal(whole, framed)  # each tile has 64 pixels a side and a white frame
        return np.stack(tiles).reshape(rows, columns, 8, 8).astype(int)

    return run


def restored(logdir, *flags):
    argv = [f'--logdir={logdir / "digits"}', '--precision=fp32', '--num_images=4', *flags]
    given = {flag.lstrip('-').partition('=')[0] for flag in flags}
    config, net, _ = restore(config_of(*argv), given)
    return config, net


def uint8(x):
    return ((x.clamp(-1, 1) + 1) * 127.5 + 0.5).squeeze(1).int().numpy()


def test_progressive_goes_from_the_noise_to_the_samples(logdir, draw):
    tiles = draw('progressive', 8, 10, group=2)
    config, net = restored(logdir)
    ((_, x_0),) = walk.draw(config, net, [0, 1, 2, 3])
    noise = Noise(0, range(4), (1, 8, 8), torch.device('cpu'))()
    for i in range(4):
        x_t, x0_hat = tiles[2 * i], tiles[2 * i + 1]
        assert abs(x_t[0] - uint8(noise)[i]).max() <= 1 and abs(x_t[-1] - uint8(x_0)[i]).max() <= 1
        assert np.array_equal(x_t[-1], x0_hat[-1]) and abs(x_t[3] - x0_hat[3]).max() > 1
        assert len({tile.tobytes() for tile in x_t}) == 10


def test_progressive_of_few_steps_shows_them_all(draw):
    draw('progressive', 4, 5, '--sample_steps=4', '--num_images=2', group=2)


def test_forward_goes_from_the_data_to_noise(logdir, draw):
    tiles = draw('forward', 4, 10, group=1)
    config, _ = restored(logdir)
    real = inputs.sample_items(config, inputs.dataset(config), 4)
    assert np.array_equal(tiles[:, 0], uint8(real))
    likeness = [np.corrcoef(tiles[:, j].ravel(), tiles[:, 0].ravel())[0, 1] for j in range(10)]
    assert likeness[1] > 0.9 and abs(likeness[-1]) < 0.3 and sorted(likeness[:5], reverse=True) == likeness[:5]


def test_guidance_is_of_each_label_and_weight_from_one_noise(logdir, draw):
    tiles = draw('guidance', 10, 5)
    assert figure.WEIGHTS == (0, 1, 2, 5, 10)
    for column, w in enumerate(figure.WEIGHTS):
        config, net = restored(logdir, f'--guidance={w}', '--labels=7')
        ((_, x_0),) = walk.draw(config, net, [0])
        assert abs(tiles[7, column] - uint8(x_0)[0]).max() <= 1, w
    assert abs(tiles[:, 0] - tiles[0, 0]).max() <= 1  # unconditional: only the noise matters
    assert abs(tiles[3, 1] - tiles[7, 1]).max() > 1
    draw('guidance', 2, 5, '--labels=3,5')


def test_interpolation_lies_between_two_real_images(logdir, draw):
    near = draw('interpolate', 4, 13, '--figure_t=1', group=1)
    config, _ = restored(logdir)
    real = uint8(inputs.sample_items(config, inputs.dataset(config), 8))
    assert np.array_equal(near[:, 0], real[:4]) and np.array_equal(near[:, -1], real[4:])
    middle = (near[:, 0] + near[:, -1]) / 2
    assert abs(near[:, 6] - middle).mean() < abs(near[:, 1] - middle).mean()  # after one noising: nearly the mean
    far = draw('interpolate', 4, 13, '--figure_t=20', group=1)
    assert abs(far[:, 1] - real[:4]).mean() > 2 * abs(near[:, 1] - real[:4]).mean()
    steps = [abs(far[:, j + 1] - far[:, j]).mean() for j in range(1, 11)]
    assert max(steps) < abs(far[:, 11] - far[:, 1]).mean()  # the same noise for every lambda


@pytest.mark.parametrize('n', [1, 2, 5])
def test_interpolation_is_of_the_pairs_that_there_are(logdir, draw, tmp_path, cli, n):
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (n, 8, 8), np.uint8)):
        (tmp_path / 'few').mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / 'few' / f'{i}.png')
    argv = ['--figure=interpolate', f'--dataset={tmp_path / "few"}', '--figure_t=1']
    if n > 1:
        ends = draw('interpolate', n // 2, 13, *argv[1:], group=1)[:, [0, -1]]
        assert len({end.tobytes() for end in ends.reshape(-1, 8, 8)}) == n // 2 * 2
    else:
        status, _, error = cli(*argv, f'--logdir={logdir / "digits"}', f'--out={tmp_path / "out"}')
        assert status == 2 and 'mixes pairs of images, and' in one_line(error)


def test_reconstructions_are_near_and_nearer_by_order_two(logdir, draw):
    tiles = draw('reconstruct', 4, 5, group=1)  # the source, its code, and 5, 10 and all 20 steps
    config, _ = restored(logdir)
    assert np.array_equal(tiles[:, 0], uint8(inputs.sample_items(config, inputs.dataset(config), 4)))
    of_code, *_, of_20_steps = (abs(tiles[:, column] - tiles[:, 0]).mean() for column in (1, 2, 3, 4))
    closer = draw('reconstruct', 4, 5, '--order=2', group=1)
    assert abs(closer[:, 4] - tiles[:, 0]).mean() < of_20_steps < of_code / 2


def test_nearest_finds_the_training_images(logdir, draw, here, monkeypatch):
    config, _ = restored(logdir, '--feature_net=classifier')
    real = dataset.load('digits', '', 8, 'train')
    images = real.prepare(loader.pick(real, torch.tensor([3, 500, 1437, 42])))
    tiles = draw('nearest', 4, 3, '--feature_net=classifier', group=1)
    ((_, x_0),) = walk.draw(*restored(logdir), [0, 1, 2, 3])
    assert abs(tiles[:, 0] - uint8(x_0)).max() <= 1
    whole = loader.decode_all(real)[0].int()[:, 0].numpy()
    errors = ((tiles[:, 0, None] - whole[None]) ** 2).sum((2, 3))
    assert np.array_equal(tiles[:, 1], whole[errors.argmin(1)])
    net = load_feature_net(config)
    apart = torch.cdist(net(picture.to_uint8(x_0))[0].double(), net(loader.decode_all(real)[0])[0].double())
    assert np.array_equal(tiles[:, 2], whole[apart.argmin(1)]) and not np.array_equal(tiles[:, 1], tiles[:, 2])
    monkeypatch.setattr('figure.walk.draw', lambda *_: [([0, 1, 2, 3], images)])  # samples that are training images
    tiles = draw('nearest', 4, 3, '--feature_net=classifier', group=1)
    for column in range(3):
        assert np.array_equal(tiles[:, column], uint8(images))


def test_distances_are_those_of_the_nearest_training_images(logdir, here, monkeypatch):
    config, net = restored(logdir, '--feature_net=classifier', '--num_images=5')
    train, test = (dataset.load('digits', '', 8, split) for split in ('train', 'test'))
    images = [train.prepare(loader.pick(train, torch.tensor([7, 90, 800]))), torch.rand(2, 1, 8, 8) * 2 - 1]
    monkeypatch.setattr('figure.walk.draw', lambda *_: [([0, 1, 2], images[0]), ([3, 4], images[1])])
    shown = []
    monkeypatch.setattr('figure.picture.curves', lambda panel, title: shown.append(panel))
    figure.distances(config, net, lambda: False)
    feature_net = load_feature_net(config)
    real, held_out = (feature_net(loader.decode_all(data)[0])[0].double() for data in (train, test))
    ours = feature_net(picture.to_uint8(torch.cat(images)))[0].double()
    wanted = [torch.cdist(side, real).min(1).values.sort().values for side in (ours, held_out)]
    reach, share = shown[0]['x'], shown[0]['y']
    assert shown[0]['label'] == ['5 samples', '359 held-out images']
    torch.testing.assert_close(reach[::25, 0], wanted[0], atol=1e-3, rtol=1e-4)  # cdist cancels near 0
    assert (reach[[0, -1], 1] - wanted[1][[0, -1]]).abs().max() < 1e-3 and share[[0, 25, -1]].tolist() == [0, 0.25, 1]
    assert reach[50, 0] < 1e-2 < reach[75, 0]  # three of the five are training images


def test_codes_are_mixed_along_the_sphere(logdir, draw):
    tiles = draw('interpolate', 4, 13, '--between=codes', '--order=2', group=1)
    config, _ = restored(logdir)
    real = uint8(inputs.sample_items(config, inputs.dataset(config), 8))
    assert np.array_equal(tiles[:, 0], real[:4]) and np.array_equal(tiles[:, -1], real[4:])
    for end, source in ((1, 0), (11, 12)):
        assert abs(tiles[:, end] - tiles[:, source]).mean() < abs(tiles[:, 6] - tiles[:, source]).mean() / 2
    a, b = (
        torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 2.0])[:, None, None, None]
    )
    norms = [figure.slerp(a, 2 * a, 0.3).norm() / a.norm(), figure.slerp(a / a.norm(), b / b.norm(), 0.7).norm()]
    assert norms == pytest.approx([1.3, 1.0], rel=1e-5)
    assert torch.allclose(figure.slerp(a, b, 0), a) and torch.allclose(figure.slerp(a, b, 1), b, atol=1e-6)


def test_figures_go_to_tensorboard_too_and_lie_beside_the_checkpoint(logdir, tmp_path, cli):
    folder = tmp_path / 'run'
    folder.mkdir()
    shutil.copy(logdir / 'digits' / 'ckpt.pt', folder)
    assert cli('--figure=forward', f'--logdir={folder}')[0] == 0
    assert os.listdir(folder / 'figures') == ['forward.png'] and list(scalars(folder, 'figure/forward')) == [4]


@pytest.mark.parametrize('run, flags, phrase', [
    ('points', ['--figure=progressive'], '--figure=progressive is of images'),
    ('points', ['--figure=interpolate'], '--figure=interpolate is of images'),
    ('free', ['--figure=guidance'], '--figure=guidance needs a checkpoint trained with --cond'),
    ('digits', ['--figure=interpolate', '--figure_t=21'], '--figure_t=21: the checkpoint has T = 20 steps'),
    ('digits', ['--figure=reconstruct', '--sample_steps=1'], 'the only timestep of these flags is 0'),
    ('digits', ['--figure=interpolate', '--between=codes', '--timesteps=0'], 'add to --sample_steps'),
    ('digits', ['--figure=spiral'], 'progressive|forward|guidance|reconstruct|interpolate'),
])  # fmt: skip
def test_a_figure_that_cannot_be_is_one_line(logdir, tmp_path, cli, run, flags, phrase):
    status, _, error = cli(*flags, f'--logdir={logdir / run}', f'--out={tmp_path / "out"}')
    assert status == 2 and phrase in error.strip().splitlines()[-1] and not Path(tmp_path / 'out').exists()


def test_an_interrupted_figure_writes_nothing(logdir, tmp_path):
    for kind in ('progressive', 'guidance', 'reconstruct', 'interpolate', 'nearest', 'distances'):
        config, net = restored(logdir)
        config.figure, config.out = kind, str(tmp_path / kind)
        figure.figure(config, net, 4, lambda: True)
        assert not (tmp_path / kind).exists()


def test_images_of_another_kind_are_refused(logdir, cli, folder_of_images):
    argv = ['--figure=interpolate', f'--logdir={logdir / "digits"}', f'--dataset={folder_of_images}']
    status, _, error = cli(*argv)
    assert status == 1 and 'are in colour, those of the checkpoint grey: --channels=1 takes' in one_line(error)
