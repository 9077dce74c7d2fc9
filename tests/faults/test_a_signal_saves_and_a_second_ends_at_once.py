"""SIGINT or SIGTERM, to a run or to its whole group, finishes the step and saves; a second one ends it at once."""

import os
import signal
import time

import pytest
from conftest import TINY
from runs import Forked, load, scalars

import dataset


def wait_for(path, run):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline and run.process.is_alive(), run.error()
        time.sleep(0.02)


@pytest.fixture
def training(tmp_path):
    """training(before) -> a run, once it has saved."""

    def start(before=None):
        argv = [
            *TINY,
            '--train',
            f'--logdir={tmp_path / "run"}',
            '--total_steps=1000000',
            '--save_step=10',
            '--compile=off',
        ]
        run = Forked(*argv, '--num_workers=2', log=tmp_path / 'log', before=before)
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


def stream_in_an_own_group():
    os.setpgrp()
    dataset.RESIDENT_BYTES = 0


def test_nor_are_the_worker_processes_missed_where_the_signal_ends_them_too(tmp_path, training):
    run = training(stream_in_an_own_group)
    os.killpg(run.pid, signal.SIGTERM)
    assert run.status() == 143 and 'Traceback' not in run.error() and 'error' not in run.error()
    assert saved_at_its_last_step(tmp_path / 'run')


def test_a_second_signal_ends_at_once_unsaved(tmp_path, training):
    run = training()
    for signum in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):  # so that both come within a step
        os.kill(run.pid, signum)
    assert run.status() == 143 and 'Traceback' not in run.error()
    assert load(tmp_path / 'run')['step'] % 10 == 0


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
