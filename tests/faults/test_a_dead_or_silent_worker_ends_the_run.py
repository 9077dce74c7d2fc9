"""Worker processes that die or hang end the run in one line within --loader_timeout seconds, and nothing is lost."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import pytest
import torch
from conftest import TINY
from runs import load, one_line

import dataset
from dataset import DataError, loader


@pytest.mark.parametrize(
    'act, timeout, phrase',
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), 60, 'a worker process died'),
        (lambda: time.sleep(3600), 6, 'no batch came from the worker processes for 6 seconds'),
        (lambda: os.kill(os.getpid(), signal.SIGSTOP), 6, 'no batch came from the worker processes for 6 seconds'),
    ],
    ids=['killed', 'hanging', 'stopped'],
)
def test_it_is_said(tmp_path, cli, monkeypatch, act, timeout, phrase):
    (batch,) = islice(loader.index_batches(1438, 8, 0, 0), 5, 6)  # batch of the sixth step
    decode = dataset.Images.__getitem__
    monkeypatch.setattr(loader, 'RESIDENT_BYTES', 0)
    monkeypatch.setattr(dataset.Images, '__getitem__', lambda data, i: act() if i == batch[0] else decode(data, i))
    argv = [*TINY, '--train', f'--logdir={tmp_path}', '--num_workers=2', '--save_step=2', '--total_steps=8']
    begin = time.monotonic()
    status, _, error = cli(*argv, f'--loader_timeout={timeout}')
    assert status == 1 and phrase in one_line(error) and 'run it again' in error
    assert time.monotonic() - begin < 50
    for child in multiprocessing.active_children():
        child.join(20)
    assert not multiprocessing.active_children()
    step = load(tmp_path)['step']
    assert step in (2, 4)
    monkeypatch.undo()
    status, _, error = cli(*argv)
    assert status == 0 and f'at step {step}' in error and load(tmp_path)['step'] == 8


def test_it_is_said_between_steps_alone(monkeypatch):
    """If a worker dies while a checkpoint is being written, the error is not raised there."""
    monkeypatch.setattr(loader, 'RESIDENT_BYTES', 0)
    stream = loader.batches(dataset.load('digits', '', 8), 8, 0, 0, torch.device('cpu'), False, 2, 30)
    next(stream)
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    with pytest.raises(DataError, match='a worker process died'):
        for _ in range(1000):
            next(stream)


@pytest.mark.parametrize(
    'act, phrase',
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), 'a worker process died'),
        (lambda: time.sleep(3600), 'no batch came from the worker processes for 3 seconds'),
    ],
    ids=['killed', 'hanging'],
)
@pytest.mark.parametrize('where', ['without SIGALRM', 'in a thread'])
def test_it_is_said_where_no_alarm_can_be_set(monkeypatch, act, phrase, where):
    if where == 'without SIGALRM':
        monkeypatch.delattr(signal, 'SIGALRM')
    monkeypatch.setattr(loader, 'RESIDENT_BYTES', 0)
    monkeypatch.setattr(dataset.Images, '__getitem__', lambda data, i: act())
    stream = loader.batches(dataset.load('digits', '', 8), 8, 0, 0, torch.device('cpu'), False, 2, 3)
    with ThreadPoolExecutor(1) as thread, pytest.raises(DataError, match=phrase):
        (thread.submit(next, stream).result if where == 'in a thread' else partial(next, stream))()
