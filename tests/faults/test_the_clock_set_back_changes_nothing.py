"""A clock set back by years between two runs, or during one, changes no bit, no order of files and no rate's sign."""

import os
import time

import pytest
from conftest import TINY
from runs import differences, load, scalars, without_logdir


@pytest.mark.parametrize('at', [0, 12], ids=['between two runs', 'during one'])
def test_the_clock_set_back(tmp_path, cli, monkeypatch, at):
    argv = [*TINY, '--train', '--save_step=2', '--sample_step=3']
    assert cli(*argv, '--total_steps=8', f'--logdir={tmp_path / "whole"}')[0] == 0
    argv += [f'--logdir={tmp_path / "run"}']
    assert cli(*argv, '--total_steps=4')[0] == 0
    now, calls = time.time, iter(range(10**9))
    monkeypatch.setattr(time, 'time', lambda: now() - 10**8 * (next(calls) >= at))
    os.utime(tmp_path / 'run' / 'ckpt.pt', (1, 1))  # older than ckpt.prev.pt, but dates do not matter
    status, _, error = cli(*argv, '--total_steps=8')
    assert status == 0 and 'at step 4' in error and 'Traceback' not in error
    whole, run = (load(tmp_path / name) for name in ('whole', 'run'))
    assert differences(without_logdir(whole), without_logdir(run)) == []
    assert list(scalars(tmp_path / 'run', 'loss')) == list(range(1, 9))
    assert min(scalars(tmp_path / 'run', 'img_per_sec').values()) > 0


def test_what_is_logged_again_hides_what_was_logged_before(tmp_path, cli, monkeypatch):
    argv = [*TINY, '--train', '--save_step=4', f'--logdir={tmp_path}']
    assert cli(*argv, '--total_steps=6')[0] == 0
    os.remove(tmp_path / 'ckpt.pt')  # drop step 6, so that steps 5 and 6 are repeated
    now = time.time
    monkeypatch.setattr(time, 'time', lambda: now() - 10**8)
    assert cli(*argv, '--total_steps=6')[0] == 0
    assert list(scalars(tmp_path, 'loss')) == list(range(1, 7))
