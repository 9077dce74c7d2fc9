"""If files may not grow (RLIMIT_FSIZE), a run ends in one line, keeps complete files and leaves no partial ones."""

import os

import numpy as np
import pytest
from conftest import TINY
from limits import files_of_at_most
from runs import load, one_line
from score_fakes import small_images, small_net

import score


@pytest.fixture
def trained(tmp_path, cli):
    assert cli(*TINY, '--train', f'--logdir={tmp_path}')[0] == 0
    return tmp_path


def test_a_checkpoint(trained, cli):
    argv = [*TINY, '--train', f'--logdir={trained}', '--total_steps=8']
    before = (trained / 'ckpt.pt').read_bytes()
    with files_of_at_most(100_000):
        status, _, error = cli(*argv)
    expected = f'cannot write {trained}/ckpt.pt: File too large; the checkpoint before it is kept'
    assert status == 1 and expected in one_line(error)
    assert (trained / 'ckpt.pt').read_bytes() == before
    assert [name for name in os.listdir(trained) if 'ckpt' in name] == ['ckpt.pt']
    assert cli(*argv)[0] == 0 and load(trained)['step'] == 8


def test_samples(trained, cli):
    argv = [*TINY, '--sample', f'--logdir={trained}', '--num_images=30']
    with files_of_at_most(1500):  # enough for one image, but not for a file of 30
        status, _, error = cli(*argv)
    assert status == 1 and 'File too large' in one_line(error)
    assert sorted(os.listdir(trained / 'samples')) == [f'{i:06d}.png' for i in range(30)] + ['samples.json']
    assert cli(*argv)[0] == 0 and len(np.load(trained / 'samples' / 'samples.npz')['arr_0']) == 30


def test_statistics(tmp_path):
    statistics = score.build_statistics(small_net(), small_images(300).split(64), 300)
    score.save_statistics(tmp_path / 'set.npz', statistics)
    before = (tmp_path / 'set.npz').read_bytes()
    with files_of_at_most(2000), pytest.raises(OSError, match='File too large'):
        score.save_statistics(tmp_path / 'set.npz', statistics)
    assert (tmp_path / 'set.npz').read_bytes() == before and os.listdir(tmp_path) == ['set.npz']
