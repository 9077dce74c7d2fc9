"""pytorch-ddpm's own ckpt.pt resumes to the same bits and draws the same images; only the flags describe it.

It has no config, numbers the last step from 0, and lacks fused Adam and newer options of Adam.
"""

import numpy as np
import pytest
import torch
from conftest import TINY
from runs import differences, load


@pytest.fixture
def theirs(tmp_path, cli, folder_of_images):
    """Return (flags, folder) of a colour run of 4 steps, as pytorch-ddpm would have saved it."""
    argv = [*TINY, f'--dataset={folder_of_images}', '--lr=0.01']
    assert cli(*argv, '--train', f'--logdir={tmp_path / "ours"}')[0] == 0
    state = load(tmp_path / 'ours')
    del state['config']
    state['step'] -= 1
    for group in state['optim']['param_groups']:
        for key in ('fused', 'foreach', 'capturable', 'differentiable', 'maximize', 'decoupled_weight_decay'):
            del group[key]
    (tmp_path / 'theirs').mkdir()
    torch.save(state, tmp_path / 'theirs' / 'ckpt.pt')
    return argv, tmp_path


def test_it_is_resumed(theirs, cli):
    argv, folder = theirs
    for name in ('ours', 'theirs'):
        assert cli(*argv, '--train', '--total_steps=6', f'--logdir={folder / name}')[0] == 0
    a, b = (load(folder / name) for name in ('ours', 'theirs'))
    for key in ('net_model', 'ema_model', 'optim', 'sched', 'step', 'x_T'):
        assert differences(a[key], b[key]) == [], key


def test_it_is_sampled(theirs, cli):
    argv, folder = theirs
    for name in ('ours', 'theirs'):
        assert cli(*argv, '--sample', f'--ckpt={folder / name / "ckpt.pt"}')[0] == 0
    a, b = (np.load(folder / name / 'samples' / 'samples.npz')['arr_0'] for name in ('ours', 'theirs'))
    assert a.shape == (4, 8, 8, 3) and np.array_equal(a, b)
