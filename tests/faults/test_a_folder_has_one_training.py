"""A second training in one folder is refused and changes nothing. The lock of a dead process blocks nobody."""

import errno
import os
import signal
import time

import pytest
from conftest import TINY
from runs import Forked, load, one_line

from dataset import loader
from run import checkpoint
from run.checkpoint import CheckpointError


def test_a_second_training_is_refused(tmp_path, cli):
    assert cli(*TINY, '--train', f'--logdir={tmp_path}')[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with checkpoint.exclusive(str(tmp_path)):
        status, _, error = cli(*TINY, '--train', f'--logdir={tmp_path}', '--total_steps=9')
        assert status == 1 and f'process {os.getpid()} is training in {tmp_path}' in one_line(error)
        assert cli('--sample', '--num_images=1', f'--logdir={tmp_path}')[0] == 0  # reading is allowed
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert cli(*TINY, '--train', f'--logdir={tmp_path}', '--total_steps=9')[0] == 0 and load(tmp_path)['step'] == 9


def test_what_a_dead_process_left_is_no_lock(tmp_path):
    for name in ('.lock', '.pid'):
        (tmp_path / name).write_text('1\n')  # a live process, but not one of ours
    for _ in range(2):
        with checkpoint.exclusive(str(tmp_path)):
            assert (tmp_path / '.pid').read_text() == f'{os.getpid()}\n'
    assert not (tmp_path / '.pid').exists()


@pytest.mark.parametrize('error', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, cli, monkeypatch, error):
    def flock(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr('fcntl.flock', flock)
    status, _, said = cli(*TINY, '--train', f'--logdir={tmp_path}')
    assert status == 0 and load(tmp_path)['step'] == 4
    assert said.count(f'{tmp_path} has no locks ({os.strerror(error)}): see to it that one training alone') == 1
    assert cli(*TINY, '--train', f'--logdir={tmp_path}', '--total_steps=8')[0] == 0 and load(tmp_path)['step'] == 8


def test_a_folder_that_cannot_be_locked_is_not_used(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr('fcntl.flock', flock)
    with pytest.raises(CheckpointError, match='cannot write .*Input/output error'):
        checkpoint.exclusive(str(tmp_path)).__enter__()


def stream():
    loader.RESIDENT_BYTES = 0


def test_the_workers_of_a_killed_process_hold_no_lock(tmp_path):
    argv = [*TINY, '--train', f'--logdir={tmp_path}', '--total_steps=1000000', '--save_step=2']
    run = Forked(*argv, '--num_workers=2', log=tmp_path / 'log', before=stream)
    while not (tmp_path / 'ckpt.pt').exists():
        assert run.process.is_alive(), run.error()
        time.sleep(0.02)
    with pytest.raises(CheckpointError, match=f'process {run.pid} is training in'), checkpoint.exclusive(str(tmp_path)):
        pass
    os.kill(run.pid, signal.SIGKILL)
    while os.path.exists(f'/proc/{run.pid}'):
        time.sleep(0.02)
    with checkpoint.exclusive(str(tmp_path)):
        pass
