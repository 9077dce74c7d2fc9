"""Resuming at any step (0, the last, beyond it) gives one complete run: the same bits, each step logged once."""

import os
import signal

import kills
import pytest
from conftest import TINY
from runs import Forked, differences, load, scalars, without_logdir

import main
import train


@pytest.fixture
def whole(tmp_path, cli):
    assert cli(*TINY, '--train', f'--logdir={tmp_path / "whole"}', '--total_steps=6')[0] == 0
    return without_logdir(load(tmp_path / 'whole'))


def equal_runs(tmp_path, whole):
    assert differences(whole, without_logdir(load(tmp_path / 'run'))) == []
    for tag in ('loss', 'real_sample'):
        assert scalars(tmp_path / 'run', tag) == scalars(tmp_path / 'whole', tag)
    return list(scalars(tmp_path / 'run', 'loss')) == [1, 2, 3, 4, 5, 6]


def test_with_a_longer_total(tmp_path, cli, whole):
    for total in (2, 3, 6):
        assert cli(*TINY, '--train', f'--logdir={tmp_path / "run"}', f'--total_steps={total}')[0] == 0
    assert equal_runs(tmp_path, whole)


def test_means_between_points(tmp_path, cli, whole):
    """Stop between two points and at one. Points at the same steps have the same means."""
    for name, totals in (('run', (3, 4, 10)), ('straight', (10,))):
        for total in totals:
            argv = [*TINY, '--train', '--log_step=4', f'--logdir={tmp_path / name}', f'--total_steps={total}']
            assert cli(*argv)[0] == 0
    assert cli(*TINY, '--train', f'--logdir={tmp_path / "each"}', '--total_steps=10')[0] == 0
    raw = scalars(tmp_path / 'each', 'loss')
    for name, points in (('run', [3, 4, 8, 10]), ('straight', [4, 8, 10])):
        means = scalars(tmp_path / name, 'loss')
        assert list(means) == points
        for before, point in zip([0, *points], points, strict=False):
            steps = range(before + 1, point + 1)
            assert means[point] == pytest.approx(sum(raw[step] for step in steps) / len(steps), rel=1e-6)
        assert scalars(tmp_path / name, 'loss_raw') == {point: raw[point] for point in points}
        assert list(scalars(tmp_path / name, 'lr')) == list(scalars(tmp_path / name, 'grad_norm')) == points


@pytest.mark.parametrize('total', [6, 4])
def test_at_the_end_or_beyond_it_nothing_is_changed(tmp_path, cli, whole, total):
    before = (tmp_path / 'whole' / 'ckpt.pt').read_bytes()
    status, _, error = cli(*TINY, '--train', f'--logdir={tmp_path / "whole"}', f'--total_steps={total}')
    assert status == 0 and f'at step 6 of {total}: raise --total_steps' in error
    assert (tmp_path / 'whole' / 'ckpt.pt').read_bytes() == before
    assert list(scalars(tmp_path / 'whole', 'loss')) == [1, 2, 3, 4, 5, 6]


def test_at_step_0(tmp_path, cli, whole, monkeypatch):
    argv = [*TINY, '--train', f'--logdir={tmp_path / "run"}', '--total_steps=6']
    monkeypatch.setattr(main.Interruption, '__call__', lambda self: True)
    monkeypatch.setattr(main.Interruption, 'signum', signal.SIGTERM, raising=False)
    monkeypatch.setattr(main.Interruption, '__init__', lambda self: None)
    assert cli(*argv)[0] == 143 and load(tmp_path / 'run')['step'] == 0
    monkeypatch.undo()
    assert cli(*argv)[0] == 0 and equal_runs(tmp_path, whole)


@pytest.mark.parametrize('save_step', [0, 2])
def test_after_steps_that_no_checkpoint_has(tmp_path, cli, whole, save_step):
    argv = [*TINY, '--train', f'--logdir={tmp_path / "run"}', '--total_steps=6', f'--save_step={save_step}']
    log_is_ahead = flush_each_step_and_die
    assert Forked(*argv, log=tmp_path / 'log', before=log_is_ahead).status() == -9
    assert os.path.exists(tmp_path / 'run' / 'ckpt.pt') == bool(save_step)
    assert max(scalars(tmp_path / 'run', 'loss')) == 3
    assert cli(*argv)[0] == 0 and load(tmp_path / 'run')['step'] == 6
    assert differences(whole['net_model'], load(tmp_path / 'run')['net_model']) == []
    assert scalars(tmp_path / 'run', 'loss') == scalars(tmp_path / 'whole', 'loss')
    assert list(scalars(tmp_path / 'run', 'real_sample')) == [0]


def flush_each_step_and_die():
    read = train.Log.read

    def flushed(log):
        read(log)
        for tracker in log.trackers:
            tracker.flush()

    train.Log.read = flushed
    kills.on_call('train.Run.update', nth=4)
