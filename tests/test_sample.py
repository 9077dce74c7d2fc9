"""Sampling from a checkpoint: files, exact counts, and independence of batch size and interruptions."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from absl.testing import flagsaver
from conftest import TINY
from PIL import Image
from runs import config_of

import main
import picture
import sample


@pytest.fixture(scope='module')
def logdir(tmp_path_factory):
    """A grey and, in rgb/, a colour run of a few steps."""
    folder = tmp_path_factory.mktemp('runs')
    rng = np.random.default_rng(0)
    (folder / 'images').mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / 'images' / f'{i}.png')
    for name, extra in (('grey', []), ('rgb', [f'--dataset={folder / "images"}'])):
        with flagsaver.flagsaver():
            argv = ['main.py', *TINY, '--train', '--lr=0.01', f'--logdir={folder / name}', *extra]
            assert main.main(main.parse_flags(argv)) == 0
    return folder


@pytest.mark.parametrize('weights, decay, hint', [('ema', 0.9999, True), ('ema', 0.5, False), ('net', 0.9999, False)])
def test_an_average_that_is_still_noise_is_named(tmp_path, cli, weights, decay, hint):
    logdir = f'--logdir={tmp_path}'
    assert cli(*TINY, '--train', logdir, f'--ema_decay={decay}')[0] == 0
    status, _, error = cli('--sample', logdir, '--num_images=1', f'--weights={weights}')
    said = 'the averaged weights of step 4 are still 100% those that the run began with: --weights=net may draw better'
    assert status == 0 and (said in error) == hint


@pytest.mark.parametrize(
    'trained, drawn, warned',
    [
        (['--p_uncond=0'], ['--guidance=2'], True),
        (['--p_uncond=0'], ['--guidance=0'], True),
        (['--p_uncond=0'], [], False),
        (['--p_uncond=0', '--p_uncond_schedule=linear'], ['--guidance=2'], False),
        ([], ['--guidance=2'], False),
    ],
)
def test_guidance_that_was_not_trained_for(tmp_path, cli, trained, drawn, warned):
    logdir = f'--logdir={tmp_path}'
    assert cli(*TINY, '--train', '--cond', logdir, *trained)[0] == 0
    status, _, error = cli('--sample', logdir, '--num_images=1', *drawn)
    assert status == 0 and ('guidance needs a network trained without labels too' in error) == warned


def images_in(folder):
    return np.load(folder / 'samples.npz')['arr_0']


@pytest.mark.parametrize('kind, shape', [('grey', (8, 8, 1)), ('rgb', (8, 8, 3))])
def test_what_sampling_writes(logdir, tmp_path, cli, kind, shape):
    argv = ['--sample', f'--logdir={logdir / kind}', '--num_images=7', f'--out={tmp_path}', '--sample_batch_size=3']
    status, out, error = cli(*argv)
    assert status == 0 and f'7 images in {tmp_path}' in out and 'sampling 7 images' in error
    names = sorted(os.listdir(tmp_path))
    assert names == [f'{i:06d}.png' for i in range(7)] + ['grid.png', 'samples.json', 'samples.npz']
    images = images_in(tmp_path)
    assert images.shape == (7, *shape) and images.dtype == np.uint8 and images.std() > 10
    for i in range(7):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f'{i:06d}.png')).reshape(shape), images[i])
    grid = np.asarray(Image.open(tmp_path / 'grid.png'))
    assert np.array_equal(grid[2:50:6, 2:50:6, : shape[2]], images[0])  # the first tile, enlarged 6 times
    assert len({image.tobytes() for image in images}) == 7


def test_batch_size_and_the_set_asked_for_change_no_image(logdir):
    config, net, _ = sample.restore(
        config_of(f'--logdir={logdir / "rgb"}', '--precision=fp32', '--num_images=150'), set()
    )
    drawn = {}
    for size in (150, 64, 7, 1):
        config.sample_batch_size = size
        wanted = range(150) if size > 1 else (0, 63, 64, 149)
        for chunk, x_0 in sample.draw(config, net, list(wanted)):
            for i, image in zip(chunk, x_0, strict=True):
                if i in drawn:
                    torch.testing.assert_close(image, drawn[i], atol=1e-5, rtol=0)
                drawn[i] = image
    assert len(drawn) == 150
    config.seed, config.sample_batch_size = 1, 4
    other = dict(zip(range(4), next(sample.draw(config, net, [0, 1, 2, 3]))[1], strict=True))
    assert all((other[i] - drawn[i]).abs().max() > 0.01 for i in other)


def test_an_interrupted_call_continues_to_the_same_images(logdir, tmp_path, cli):
    argv = ['--sample', f'--logdir={logdir / "grey"}', '--num_images=9', '--sample_batch_size=3', '--precision=fp32']
    assert cli(*argv, f'--out={tmp_path / "whole"}')[0] == 0
    config, net, _ = sample.restore(config_of(*argv, f'--out={tmp_path / "parts"}'), set())
    polls = iter(range(1000))
    sample.sample(config, net, lambda: next(polls) > 13)  # within the second batch of 8 steps
    assert len(list((tmp_path / 'parts').glob('0*.png'))) == 3 and not (tmp_path / 'parts' / 'samples.npz').exists()
    os.remove(tmp_path / 'parts' / '000001.png')
    kept = (tmp_path / 'parts' / '000000.png').stat().st_mtime_ns
    assert cli(*argv, f'--out={tmp_path / "parts"}')[0] == 0
    assert (tmp_path / 'parts' / '000000.png').stat().st_mtime_ns == kept
    difference = images_in(tmp_path / 'parts').astype(int) - images_in(tmp_path / 'whole')
    assert abs(difference).max() <= 1


def test_more_images_extend_a_set_and_fewer_or_others_are_refused(logdir, tmp_path, cli):
    argv = ['--sample', f'--logdir={logdir / "grey"}', f'--out={tmp_path}']
    assert cli(*argv, '--num_images=3')[0] == 0
    first = images_in(tmp_path)
    assert cli(*argv, '--num_images=5')[0] == 0
    assert images_in(tmp_path).shape[0] == 5 and np.array_equal(images_in(tmp_path)[:3], first)
    for extra, why in (
        (['--num_images=4'], 'beyond the 4 asked for'),
        (['--num_images=5', '--seed=1'], 'of other seed'),
        (['--num_images=5', '--weights=net'], 'of other weights'),
        (['--num_images=5', '--eta=0.5'], 'of other eta'),
    ):
        status, _, error = cli(*argv, *extra)
        assert status == 1 and why in error and 'choose another --out' in error
    assert images_in(tmp_path).shape[0] == 5


def test_the_checkpoint_decides_the_network_and_the_flags_given_the_sampler(logdir, tmp_path, cli):
    out = tmp_path / 'out'
    # None of the network's flags is given, and their defaults describe another one.
    assert cli('--sample', f'--ckpt={logdir / "grey" / "ckpt.pt"}', '--num_images=2', f'--out={out}')[0] == 0
    with open(out / 'samples.json') as file:
        used = json.load(file)
    assert (used['ch_mult'], used['T'], used['channels'], used['sample_steps'], used['eta']) == ([1], 8, 1, 0, 1.0)
    argv = ['--sample', f'--logdir={logdir / "grey"}', '--num_images=2', f'--out={tmp_path / "ddim"}']
    status, _, error = cli(*argv, '--sample_steps=4', '--eta=0')
    assert status == 0 and '4/4' in error
    status, _, error = cli(*argv, '--ch=64')
    assert status == 2 and '--ch=64 (trained with 32)' in error


def test_by_default_samples_lie_beside_the_checkpoint(logdir, tmp_path, cli):
    shutil.copy(logdir / 'grey' / 'ckpt.pt', tmp_path / 'ckpt.pt')
    assert cli('--sample', f'--ckpt={tmp_path / "ckpt.pt"}', '--num_images=1')[0] == 0
    assert (tmp_path / 'samples' / '000000.png').exists()


def test_ema_and_net_weights_differ(logdir, tmp_path, cli):
    for weights in ('ema', 'net'):
        argv = ['--sample', f'--logdir={logdir / "grey"}', '--num_images=2', f'--out={tmp_path / weights}']
        assert cli(*argv, f'--weights={weights}')[0] == 0
    assert not np.array_equal(images_in(tmp_path / 'ema'), images_in(tmp_path / 'net'))


def test_uint8_rounds_to_the_nearest():
    levels = torch.arange(256.0) / 127.5 - 1
    assert torch.equal(picture.to_uint8(levels + 0.003), torch.arange(256, dtype=torch.uint8))
    assert picture.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
