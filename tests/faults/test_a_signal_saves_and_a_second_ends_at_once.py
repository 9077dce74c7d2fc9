"""SIGINT or SIGTERM, to a run or to its whole group, finishes the step and saves; a second Ctrl-C ends it at once.

A signal that comes much later also ends it at once. Signals that come together, from a scheduler and torchrun, count
as one.
"""

import os
import signal
import time
from functools import partial
from itertools import islice
from types import SimpleNamespace

import pytest
from conftest import TINY
from runs import Forked, load, scalars

import dataset
import main
import train
from dataset import loader


def wait_for(path, run):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline and run.process.is_alive(), run.error()
        time.sleep(0.02)


@pytest.fixture
def training(tmp_path):
    """Return training() -> a run that has already saved."""

    def start(before=None):
        argv = [*TINY, '--train', f'--logdir={tmp_path / "run"}', '--total_steps=1000000', '--save_step=10']
        run = Forked(*argv, log=tmp_path / 'log', before=before)
        wait_for(tmp_path / 'run' / 'ckpt.pt', run)
        return run

    return start


def saved_at_its_last_step(logdir):
    return load(logdir)['step'] == max(scalars(logdir, 'loss')) >= 10


@pytest.mark.parametrize('signum, status', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_step_is_finished_and_saved(tmp_path, training, signum, status):
    run = training()
    os.kill(run.pid, signum)
    assert run.status() == status and 'Traceback' not in run.error()
    assert saved_at_its_last_step(tmp_path / 'run')


def signal_an_own_group_from_a_worker_that_is_waited_for():
    os.setpgrp()
    group, decode = os.getpid(), dataset.Images.__getitem__
    (batch,) = islice(loader.index_batches(1438, 8, 0, 0), 5, 6)  # batch of the sixth step

    def item(data, i):
        if i == batch[0]:
            time.sleep(1)
            os.killpg(group, signal.SIGTERM)
        return decode(data, i)

    loader.RESIDENT_BYTES, dataset.Images.__getitem__ = 0, item


def test_the_worker_processes_outlive_a_signal_to_the_group(tmp_path):
    argv = [*TINY, '--train', f'--logdir={tmp_path}', '--num_workers=2', '--total_steps=99']
    run = Forked(*argv, log=tmp_path / 'log', before=signal_an_own_group_from_a_worker_that_is_waited_for)
    assert run.status() == 143 and 'error' not in run.error()
    assert 0 < load(tmp_path)['step'] == max(scalars(tmp_path, 'loss')) <= 6


def long_steps(begun):
    """Make steps after the tenth so long that two signals come within one. begun: a file made when the first starts."""
    update = train.Run.update

    def slowly(run, *batch):
        if run.step >= 10:
            begun.touch()
        time.sleep(0.01 if run.step < 10 else 2)
        return update(run, *batch)

    train.Run.update = slowly


@pytest.mark.parametrize(
    'signals, status',
    [
        ([signal.SIGINT, signal.SIGINT], 130),
        ([signal.SIGTERM, signal.SIGTERM], 143),  # from a scheduler and from torchrun
        ([signal.SIGINT, signal.SIGTERM], 130),
        ([signal.SIGTERM, signal.SIGINT], 143),
    ],
)
def test_a_second_ctrl_c_alone_ends_at_once_unsaved(tmp_path, training, signals, status):
    begun = tmp_path / 'begun'
    run = training(before=partial(long_steps, begun))
    while not begun.exists():
        time.sleep(0.01)
    for signum in signals:
        os.kill(run.pid, signum)
        time.sleep(0.2)
    assert run.status() == status and 'Traceback' not in run.error()
    assert run.error().count('stopping after this step; Ctrl-C once more stops at once, unsaved') == 1
    unsaved = signals == [signal.SIGINT, signal.SIGINT]
    assert (load(tmp_path / 'run')['step'] == 10) == unsaved


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('later, ends', [(3, False), (8, True)])
def test_a_signal_that_comes_later_ends_at_once(monkeypatch, signum, later, ends):
    ended = []
    monkeypatch.setattr(signal, 'signal', lambda *_: None)
    monkeypatch.setattr(os, '_exit', ended.append)
    clock = iter([100.0, 100.0 + later])
    monkeypatch.setattr(main, 'time', SimpleNamespace(monotonic=lambda: next(clock)))
    interrupted = main.Interruption()
    interrupted.handle(signal.SIGTERM, None)
    interrupted.handle(signum, None)
    assert interrupted() and ended == ([128 + signum] if ends else [])


def test_sampling_stops_after_the_step(tmp_path, training):
    run = training()
    os.kill(run.pid, signal.SIGINT)
    run.status()
    argv = [
        '--sample',
        f'--logdir={tmp_path / "run"}',
        '--num_images=9999',
        '--sample_batch_size=1',
        '--compile=off',
    ]
    drawing = Forked(*argv, log=tmp_path / 'log')
    wait_for(tmp_path / 'run' / 'samples' / '000000.png', drawing)
    os.kill(drawing.pid, signal.SIGINT)
    assert drawing.status() == 130 and 'Traceback' not in drawing.error()
    assert not (tmp_path / 'run' / 'samples' / 'samples.npz').exists()
