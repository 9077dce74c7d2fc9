"""Checkpoints: which ones are kept, and which files are not one."""

import argparse
import contextlib
import errno
import os
import stat
import zipfile

import numpy as np
import pytest
import torch

from run import checkpoint, files
from run.checkpoint import CheckpointError
from run.errors import OutOfMemory


def state(n):
    return {'step': n, 'weights': torch.arange(2000.0) + n, 'config': {'ch': 32, 'attn': []}}


@pytest.fixture
def path(tmp_path):
    """Save a checkpoint of step 2 after the one of step 1."""
    path = str(tmp_path / 'ckpt.pt')
    for n in (1, 2):
        checkpoint.save(path, state(n))
    return path


def test_the_newest_is_loaded_and_the_one_before_is_kept(path):
    assert checkpoint.load(path)['step'] == 2
    assert checkpoint.load(checkpoint.previous(path))['step'] == 1
    assert sorted(os.listdir(os.path.dirname(path))) == ['ckpt.prev.pt', 'ckpt.pt']


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint at'):
        checkpoint.load(str(tmp_path / 'ckpt.pt'))
    with zipfile.ZipFile(tmp_path / 'ckpt.pt', 'w') as archive:
        archive.writestr('readme.txt', 'not a checkpoint')
    with pytest.raises(CheckpointError, match='damaged or no checkpoint'):
        checkpoint.load(str(tmp_path / 'ckpt.pt'))


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize(
    'value, said',
    [
        (argparse.Namespace(lr=1), 'holds argparse.Namespace: '),
        (np.float64(1), r'holds numpy\.\S*scalar, a NumPy number such as np.float64: '),
        (np.zeros(2), r'holds numpy\.\S*_reconstruct, a NumPy array: '),
    ],
)
def test_a_foreign_type_is_named_in_one_plain_line(tmp_path, value, said, legacy):
    torch.save({'loss': value}, tmp_path / 'ckpt.pt', _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=f'ckpt.pt {said}') as raised:
        checkpoint.read(str(tmp_path / 'ckpt.pt'))
    assert str(raised.value).isprintable() and len(str(raised.value)) < 250 + len(str(tmp_path))


def test_a_file_that_holds_something_else_is_no_checkpoint(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / 'list.pt')
    with pytest.raises(CheckpointError, match='it holds a list'):
        checkpoint.load(str(tmp_path / 'list.pt'))


@pytest.mark.parametrize(
    'call, error',
    [
        ('torch.load', RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes.")),
        ('torch.load', MemoryError()),
        ('builtins.open', PermissionError(errno.EACCES, 'Permission denied')),
    ],
)
def test_what_cannot_be_read_now_is_not_taken_for_damaged(path, monkeypatch, call, error):
    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(call, fail)
        with pytest.raises((OutOfMemory, PermissionError)):
            checkpoint.load(path, repair=True)
    assert checkpoint.load(path)['step'] == 2


def test_a_file_that_another_process_has_open_is_waited_for(tmp_path, monkeypatch):
    """Windows raises PermissionError for a checkpoint that is being read."""
    left, replace = [2], os.replace

    def refused(*paths):
        left[0] -= 1
        if left[0] >= 0:
            raise PermissionError(13, 'Access is denied')
        replace(*paths)

    monkeypatch.setattr(os, 'replace', refused)
    with pytest.raises(CheckpointError, match='Access is denied'):
        checkpoint.save(str(tmp_path / 'ckpt.pt'), {'step': 1})
    monkeypatch.setattr(files, 'PATIENCE', 5.0)
    checkpoint.save(str(tmp_path / 'ckpt.pt'), {'step': 2})
    assert checkpoint.load(str(tmp_path / 'ckpt.pt'))['step'] == 2


@pytest.mark.parametrize('error, status', [(errno.EINVAL, 'saved'), (errno.EIO, 'refused')])
def test_a_folder_that_cannot_be_synced(tmp_path, monkeypatch, error, status):
    fsync = os.fsync

    def refused(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(error, os.strerror(error))
        fsync(fd)

    monkeypatch.setattr(os, 'fsync', refused)
    with pytest.raises(CheckpointError, match=os.strerror(error)) if status == 'refused' else contextlib.nullcontext():
        checkpoint.save(str(tmp_path / 'ckpt.pt'), {'step': 1})
