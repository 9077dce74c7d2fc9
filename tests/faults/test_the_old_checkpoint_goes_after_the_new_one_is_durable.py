"""No checkpoint is renamed over another before every byte of it was synced, and the renaming is synced too."""

import os

import pytest

from run import checkpoint


@pytest.fixture
def disk(monkeypatch):
    """Record calls that rename, or sync a folder. Renamed files, and files at the target, must have been synced."""
    durable, calls = {}, []
    fsync, replace = os.fsync, os.replace

    def fsynced(fd):
        fsync(fd)
        path = os.readlink(f'/proc/self/fd/{fd}')
        if os.path.isdir(path):
            calls.append('sync of folder')
        else:
            with open(path, 'rb') as file:
                durable[os.fstat(fd).st_ino] = file.read()

    def renamed(source, target):
        with open(source, 'rb') as file:
            assert durable.get(os.stat(source).st_ino) == file.read(), f'{source} is not durable'
        assert all(os.stat(path).st_ino in durable for path in os.scandir(os.path.dirname(target)))
        calls.append('rename')
        replace(source, target)

    monkeypatch.setattr(os, 'fsync', fsynced)
    monkeypatch.setattr(os, 'replace', renamed)
    return calls


def test_the_order_of_a_save(tmp_path, disk):
    path = str(tmp_path / 'ckpt.pt')
    for step in range(3):
        disk.clear()
        checkpoint.save(path, {'step': step})
    assert disk == ['rename', 'rename', 'sync of folder']
    assert (checkpoint.load(path)['step'], checkpoint.load(checkpoint.previous(path))['step']) == (2, 1)
