"""Worker processes that die or hang end the run in one line within --loader_timeout seconds, and nothing is lost."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from conftest import TINY
from runs import load, one_line

import dataset
from dataset import DataError

TIMEOUT = 8


def on_item(monkeypatch, folder, act):
    """Have act() called in place of the 60th image's decoding."""
    decode = dataset.Images.__getitem__

    def item(images, i):
        if i == 60 and multiprocessing.parent_process():
            act()
        return decode(images, i)

    monkeypatch.setattr(dataset, 'RESIDENT_BYTES', 0)
    monkeypatch.setattr(dataset.Images, '__getitem__', item)
    return [*TINY, '--train', f'--logdir={folder}', '--total_steps=99999', '--compile=off', '--num_workers=2']


@pytest.mark.parametrize(
    'act, phrase',
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), 'exited unexpectedly'),
        (lambda: time.sleep(3600), f'no batch came from the worker processes for {TIMEOUT} seconds'),
        (lambda: os.kill(os.getpid(), signal.SIGSTOP), f'for {TIMEOUT} seconds'),
    ],
    ids=['killed', 'hanging', 'stopped'],
)
def test_it_is_said(tmp_path, cli, monkeypatch, act, phrase):
    argv = on_item(monkeypatch, tmp_path, act)
    begin = time.monotonic()
    status, _, error = cli(*argv, '--save_step=1', f'--loader_timeout={TIMEOUT}')
    assert status == 1 and phrase in one_line(error) and 'run it again' in error
    assert time.monotonic() - begin < 60 and not multiprocessing.active_children()
    step = load(tmp_path)['step']
    monkeypatch.undo()
    assert cli(*argv, f'--total_steps={step + 1}')[0] == 0 and load(tmp_path)['step'] == step + 1


def test_it_is_said_between_steps_alone(monkeypatch):
    """A death while a checkpoint is being written is not raised there."""
    monkeypatch.setattr(dataset, 'RESIDENT_BYTES', 0)
    digits = dataset.load('digits', '', 8)
    stream = dataset.batches(digits, 8, 0, 0, torch.device('cpu'), False, 2, TIMEOUT)
    next(stream)
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    with pytest.raises(DataError, match='exited unexpectedly'):
        for _ in range(1000):
            next(stream)
