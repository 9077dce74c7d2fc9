"""A run killed by SIGKILL at twenty random points and restarted each time ends with the bits of an unbroken one."""

from functools import partial

import kills
import pytest
from conftest import TINY
from runs import Forked, differences, load, scalars, without_logdir

# Calls and returns: half of the kills hit the first two steps after a start, the others the first five and their saves.
RANGES = [20_000, 300_000]


@pytest.mark.parametrize('precision, times', [('fp32', 20), ('bf16', 6)])
def test_kills_change_no_bit(tmp_path, precision, times):
    argv = [*TINY, '--train', '--total_steps=30', '--save_step=2', '--dropout=0.1', '--lr_schedule=cosine']
    argv += ['--sample_step=7', f'--precision={precision}', f'--logdir={tmp_path / "killed"}']
    for seed in range(times):
        kill = partial(kills.at_random, 'train.Run.update', seed, RANGES[seed % 2])
        assert Forked(*argv, log=tmp_path / 'log', before=kill).status() == -9
    assert Forked(*argv, log=tmp_path / 'log').status() == 0
    assert Forked(*argv, f'--logdir={tmp_path / "whole"}', log=tmp_path / 'log').status() == 0
    whole, killed = (load(tmp_path / name) for name in ('whole', 'killed'))
    assert whole['step'] == 30
    assert differences(without_logdir(whole), without_logdir(killed)) == []
    assert scalars(tmp_path / 'killed', 'loss') == scalars(tmp_path / 'whole', 'loss')
    assert list(scalars(tmp_path / 'killed', 'loss')) == list(range(1, 31))
