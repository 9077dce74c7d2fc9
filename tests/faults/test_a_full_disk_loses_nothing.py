"""On a full disk, each command ends in one line, keeps complete files and leaves no partial ones."""

import os
import shutil

import pytest
from conftest import TINY
from limits import mounted
from runs import load, one_line


@pytest.fixture
def disk(tmp_path):
    """Mount a disk of 12 MB. A checkpoint takes 2.6 MB."""
    with mounted(tmp_path / 'disk', '12m') as disk:
        yield disk


@pytest.fixture
def trained(disk, cli):
    assert cli(*TINY, '--train', f'--logdir={disk / "run"}')[0] == 0
    return disk


def fill(disk, leaving):
    """Fill the disk except for `leaving` bytes."""
    with open(disk / 'ballast', 'wb') as file:
        file.write(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - leaving))


@pytest.mark.parametrize('leaving', [0, 4096, 1_300_000], ids=['nothing', 'a page', 'half a checkpoint'])
def test_training(trained, cli, leaving):
    fill(trained, leaving)
    before = (trained / 'run' / 'ckpt.pt').read_bytes()
    status, _, error = cli(*TINY, '--train', f'--logdir={trained / "run"}', '--total_steps=8')
    assert status == 1 and 'No space left on device' in one_line(error)
    assert (trained / 'run' / 'ckpt.pt').read_bytes() == before
    assert [name for name in os.listdir(trained / 'run') if 'ckpt' in name] == ['ckpt.pt']
    os.remove(trained / 'ballast')
    assert cli(*TINY, '--train', f'--logdir={trained / "run"}', '--total_steps=8')[0] == 0
    assert load(trained / 'run')['step'] == 8


def test_sampling(trained, cli):
    argv = [*TINY, '--sample', f'--logdir={trained / "run"}', '--num_images=30']
    fill(trained, 40_000)
    status, _, error = cli(*argv)
    assert status == 1 and 'No space left on device' in one_line(error)
    names = os.listdir(trained / 'run' / 'samples')
    assert not [name for name in names if name.endswith('.tmp')] and 'samples.npz' not in names
    os.remove(trained / 'ballast')
    assert cli(*argv)[0] == 0 and len(os.listdir(trained / 'run' / 'samples')) == 33


def test_what_was_computed_is_printed(trained, cli, here):
    argv = [f'--logdir={trained / "run"}', '--num_images=20', '--feature_net=classifier']
    fill(trained, 0)
    for verb, found in (('--eval', 'FID(classifier):'), ('--nll', 'bits/dim: L_T')):
        status, out, error = cli(verb, *argv)
        assert status == 1 and 'No space left on device' in one_line(error) and found in out


def test_statistics(disk, cli, classifier, monkeypatch):
    monkeypatch.chdir(disk)
    os.mkdir('stats')
    shutil.copy(classifier, 'stats')
    argv = [*TINY, '--stats', '--feature_net=classifier']
    fill(disk, 40_000)
    status, _, error = cli(*argv)
    assert status == 1 and 'No space left on device' in one_line(error)
    assert os.listdir('stats') == ['digits.classifier.pt']
    os.remove('ballast')
    assert cli(*argv)[0] == 0
