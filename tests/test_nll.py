"""Run --nll, and train networks that learn a variance, from the command line."""

import json
import math
import os
import re

import numpy as np
import pytest
import torch
from absl.testing import flagsaver
from conftest import TINY
from PIL import Image
from runs import config_of, load, scalars

import main
import nll
from dataset import loader
from draw import picture
from draw.noise import Noise, derive_seed
from model import UNet
from networks.context_unet import ContextUNet
from run import build, inputs
from run.restore import restore


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Train a few steps: a conditional run that learns its variance, one with a fixed variance, one of points."""
    folder = tmp_path_factory.mktemp('runs')
    # At 32 channels the norm cancels labels.
    learned = ['--loss=hybrid', '--var_type=learned_range', '--cond', '--ch_mult=2', '--sample_step=20']
    points = ['--dataset=moons', '--net=point_mlp']
    for name, extra in {'learned': learned, 'fixed': ['--loss=kl'], 'points': points}.items():
        tiny = [flag for flag in TINY if flag.partition('=')[0] not in {other.partition('=')[0] for other in extra}]
        argv = [*tiny, '--train', '--lr=0.01', '--warmup=0', '--ema_decay=0', '--total_steps=20', *extra]
        with flagsaver.flagsaver():
            assert main.main(main.parse_flags(['main.py', *argv, f'--logdir={folder / name}'])) == 0
    state = load(folder / 'learned')
    torch.nn.init.normal_(state['ema_model']['label_embedding.weight'], std=3)
    torch.save(state, folder / 'learned' / 'ckpt.pt')
    return folder


def last_record(folder):
    with open(folder / 'nll.txt') as file:
        return json.loads(file.readlines()[-1])


@pytest.mark.parametrize('name', ['learned', 'fixed'])
def test_what_nll_says_and_writes(runs, cli, monkeypatch, name):
    titles, curves = [], picture.curves
    monkeypatch.setattr(picture, 'curves', lambda *panels, title: titles.append(title) or curves(*panels, title=title))
    status, out, error = cli('--nll', f'--logdir={runs / name}')
    assert status == 0 and '24/24' in error  # 3 batches of 8 steps
    record = last_record(runs / name)
    assert f'Model(EMA): {record["bits_per_dim"]:.4f} +- {record["standard_error"]:.4f} bits/dim' in out
    assert '359 images of test, 8 steps, every term' in out and record['split'] == 'test' and record['step'] == 20
    assert scalars(runs / name, 'bits_per_dim_EMA') == {20: pytest.approx(record['bits_per_dim'])}
    arrays = np.load(runs / name / 'nll.npz')
    assert arrays['t'].tolist() == list(range(8)) and arrays['totals'].shape == (359,)
    parts = record['L_T'] + record['L_1_to_T-1'] + record['L_0']
    assert record['bits_per_dim'] == pytest.approx(parts) == pytest.approx(arrays['totals'].mean())
    assert record['L_0'] == pytest.approx(arrays['terms'][0]) and (arrays['x0_mse'] > 0).all()
    assert record['standard_error'] == pytest.approx(arrays['totals'].std(ddof=1) / math.sqrt(359))
    assert np.asarray(Image.open(runs / name / 'nll.png')).std() > 10
    (title,) = titles
    assert f'{record["bits_per_dim"]:.3f} bits/dim, the mean of 359 images of digits (test)' in title


def test_the_bound_is_that_of_the_weights_and_the_noise_is_each_images_own(runs, tmp_path, cli):
    """Compare term by term with the trainer's own loss on each image's noise, at several batch sizes."""
    config, net, _ = restore(config_of(f'--logdir={runs / "fixed"}', '--precision=fp32'), set())
    data = inputs.dataset(config, 'test')
    x_0 = data.prepare(loader.decode_all(data)[0])
    noise = Noise(derive_seed('nll', 0), range(359), (1, 8, 8), torch.device('cpu'))
    config.loss = 'kl'
    trainer = build.trainer(config, net)
    with torch.no_grad():
        expected = [trainer(x_0, t=torch.full((359,), t), eps=noise()).mean((1, 2, 3)) / 8 for t in range(8)]
    arrays = []
    for size in (128, 50):
        assert cli('--nll', f'--logdir={runs / "fixed"}', f'--sample_batch_size={size}')[0] == 0
        arrays.append(dict(np.load(runs / 'fixed' / 'nll.npz')))
    np.testing.assert_allclose(arrays[0]['terms'], torch.stack(expected).mean(1), rtol=1e-4)
    np.testing.assert_allclose(arrays[0]['totals'] - arrays[0]['prior'], torch.stack(expected).sum(0), rtol=1e-4)
    np.testing.assert_allclose(arrays[1]['totals'], arrays[0]['totals'], rtol=1e-5)


def test_fewer_terms_the_other_split_and_a_shorter_chain(runs, cli):
    argv = ['--nll', f'--logdir={runs / "fixed"}']
    status, out, _ = cli(*argv, '--nll_steps=3')
    assert status == 0 and '8 steps, an estimate from 3 terms an image' in out
    assert last_record(runs / 'fixed')['nll_steps'] == 3
    status, out, _ = cli(*argv, '--split=train', '--nll_steps=2')
    assert status == 0 and '1438 images of train' in out
    status, out, _ = cli(*argv, '--sample_steps=4', '--eta=0', '--var_type=fixedsmall')
    assert status == 0 and '4 steps, every term, fixedsmall' in out
    assert len(np.load(runs / 'fixed' / 'nll.npz')['t']) == 4
    status, out, _ = cli(*argv, '--sample_steps=1')
    assert status == 0 and '1 steps, every term' in out and 'L_1 to L_T-1 0.0000' in out


def test_one_image_has_no_standard_error(runs, cli, folder_of_images):
    data = f'--dataset={folder_of_images}', f'--test_dataset={folder_of_images / "cat" / "0.png"}', '--channels=1'
    status, out, error = cli('--nll', f'--logdir={runs / "fixed"}', *data)
    assert status == 0 and re.search(r'Model\(EMA\): [\d.]+ bits/dim: L_T', out) and 'WARNING' not in error
    assert last_record(runs / 'fixed')['standard_error'] is None


def test_labels_count(runs, cli):
    bits = []
    for w in (1, 0, 3):
        assert cli('--nll', f'--logdir={runs / "learned"}', f'--guidance={w}', '--nll_steps=2')[0] == 0
        bits.append(last_record(runs / 'learned')['bits_per_dim'])
    assert len({round(value, 3) for value in bits}) == 3


def test_an_interrupted_nll_writes_nothing(runs, tmp_path):
    config, net, _ = restore(config_of(f'--logdir={runs / "fixed"}'), set())
    config.logdir = str(tmp_path)
    assert nll.nll(config, net, interrupted=lambda: True) is None and not os.listdir(tmp_path)


# --- learned variances


def test_a_learned_variance_draws_as_the_fixed_ones_do(runs, tmp_path, cli):
    images = {}
    for name, flags in {
        'all': [],
        'few': ['--sample_steps=4'],
        'guided': ['--sample_steps=4', '--guidance=3'],
        'ddim': ['--sample_steps=4', '--eta=0'],
    }.items():
        argv = ['--sample', f'--logdir={runs / "learned"}', '--precision=fp32', f'--out={tmp_path / name}', *flags]
        assert cli(*argv, '--num_images=10')[0] == 0
        images[name] = np.load(tmp_path / name / 'samples.npz')['arr_0'].astype(int)
        assert images[name].shape == (10, 8, 8, 1)
    assert all(abs(images[name] - images['few']).max() > 1 for name in ('all', 'guided', 'ddim'))
    for kind in ('progressive', 'guidance', 'interpolate'):
        few = '--num_images=2', '--sample_steps=4', '--labels=0'
        assert cli(f'--figure={kind}', f'--logdir={runs / "learned"}', f'--out={tmp_path}', *few)[0] == 0
        assert (tmp_path / f'{kind}.png').exists()
    assert (runs / 'learned' / 'sample' / '20.png').exists()


def test_it_is_part_of_the_weights_and_a_fixed_one_is_not(runs, tmp_path, cli):
    assert load(runs / 'learned')['net_model']['tail.2.weight'].shape[0] == 2
    for var_type in ('fixedsmall', 'learned'):
        status, _, error = cli('--sample', f'--logdir={runs / "learned"}', f'--var_type={var_type}')
        assert status == 2 and f'--var_type={var_type} (trained with learned_range)' in error.strip().splitlines()[-1]
    argv = [f'--flagfile={runs / "learned" / "flagfile.txt"}', '--train', '--total_steps=22']
    status, _, error = cli(*argv, '--loss=mse', '--var_type=fixedlarge')
    assert status == 1 and '--var_type=fixedlarge (trained with learned_range)' in error.strip().splitlines()[-1]
    argv = ['--sample', f'--logdir={runs / "fixed"}', f'--out={tmp_path}', '--num_images=1']
    assert cli(*argv, '--var_type=fixedsmall')[0] == 0
    status, _, error = cli(*argv, '--var_type=learned')
    assert status == 2 and '--var_type=learned (trained with fixedlarge)' in error.strip().splitlines()[-1]
    argv = [f'--flagfile={runs / "fixed" / "flagfile.txt"}', '--train', '--total_steps=20']
    assert cli(*argv, '--var_type=fixedsmall')[0] == 0


@pytest.mark.parametrize('make', [
    lambda **options: UNet(8, 32, [1, 2], [1], 1, 0.0, num_classes=3, **options),
    lambda **options: UNet(8, 32, [1, 2], [1], 1, 0.0, arch='official', **options),
    lambda **options: ContextUNet(8, 32, [1, 1], img_channels=3, img_size=8, **options),
])  # fmt: skip
def test_a_network_of_twice_the_channels_has_the_same_keys(make):
    plain, wide = make(), make(out_channels=6)
    assert list(plain.state_dict()) == list(wide.state_dict())
    other = [key for key, value in plain.state_dict().items() if value.shape != wide.state_dict()[key].shape]
    assert len(other) == 2 and all(key.startswith('tail.') for key in other)
    assert wide(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)).shape == (2, 6, 8, 8)


# --- refusals


@pytest.mark.parametrize('name, flags, status, phrase', [
    ('points', ['--nll'], 2, '--nll is of 8-bit images'),
    ('fixed', ['--nll', '--nll_steps=1'], 2, '--nll_steps must be between 2 and the 8 steps of the chain, not 1'),
    ('fixed', ['--nll', '--nll_steps=9'], 2, '--nll_steps must be between 2 and the 8 steps of the chain, not 9'),
    ('fixed', ['--nll', '--nll_steps=-1'], 2, 'nll_steps'),
    ('fixed', ['--nll', '--split=all'], 2, 'split'),
    ('fixed', ['--nll', '--dataset=no/such'], 1, 'no/such'),
    ('none', ['--nll'], 1, 'no checkpoint at'),
    ('new', [*TINY, '--train', '--loss=hybrid'], 2, 'loss hybrid does not train var_type fixedlarge'),
    ('new', [*TINY, '--train', '--var_type=learned'], 2, 'loss mse does not train var_type learned'),
    ('new', [*TINY, '--train', '--loss=l1'], 2, 'value should be one of <mse|kl|hybrid|min_snr>'),
    ('new', [*TINY, '--train', '--min_snr_gamma=0'], 2, 'min_snr_gamma must be above 0'),
    ('new', [*TINY, '--train', '--t_sampler=loss_aware', '--antithetic_t'], 2, 'antithetic_t pairs uniform timesteps'),
    ('new', [*TINY, '--train', '--loss=kl', '--net=point_mlp', '--dataset=moons'], 2, '--loss=kl is of 8-bit images'),
    ('new', [*TINY, '--train', '--net=point_mlp', '--var_type=learned'], 2, '--net=point_mlp predicts no variance'),
])  # fmt: skip
def test_what_cannot_be_is_one_line(runs, cli, name, flags, status, phrase):
    found, _, error = cli(*flags, f'--logdir={runs / name}')
    assert found == status and phrase in error.strip().splitlines()[-1] and 'Traceback' not in error
    assert not (runs / 'new').exists()


def test_a_folder_without_a_test_split(runs, cli, folder_of_images):
    status, _, error = cli('--nll', f'--logdir={runs / "fixed"}', f'--dataset={folder_of_images}')
    assert status == 1 and 'no test split of its own: name one with --test_dataset' in error.strip().splitlines()[-1]


def test_images_of_another_kind(runs, cli, folder_of_images):
    for name in ('fixed', 'learned'):
        status, _, error = cli('--nll', f'--logdir={runs / name}', f'--dataset={folder_of_images}', '--split=train')
        assert status == 1 and 'are in colour, those of the checkpoint grey' in error.strip().splitlines()[-1]
