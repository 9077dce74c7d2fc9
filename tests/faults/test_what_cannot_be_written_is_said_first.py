"""A folder that cannot be written is named in one line before any work. Files that it already holds are used."""

import os
import re
import shutil

import pytest
from conftest import TINY
from limits import mounted, read_only
from runs import one_line

from run import inputs

STATS = [*TINY, '--stats', '--feature_net=classifier']


@pytest.fixture
def disk(tmp_path, classifier, monkeypatch):
    """Enter a mounted working folder with the digits' classifier in its stats/."""
    with mounted(tmp_path / 'disk', '8m') as disk:
        monkeypatch.chdir(disk)
        os.mkdir('stats')
        shutil.copy(classifier, 'stats')
        yield disk
        monkeypatch.undo()


def never(*_):
    raise AssertionError('work was begun')


def test_the_folder_of_a_run(disk, cli, monkeypatch):
    os.mkdir('run')
    (disk / 'file').write_text('')
    monkeypatch.setattr('train.Run', never)
    with read_only(disk):
        for logdir in ('run', 'new', 'file/run', '/proc/run'):
            status, _, error = cli(*TINY, '--train', f'--logdir={logdir}')
            assert status == 1
            assert f'cannot write {logdir}: ' in one_line(error) and 'choose another --logdir' in error


def test_the_folder_of_statistics(disk, cli, monkeypatch):
    monkeypatch.setattr(inputs, 'in_order', never)
    with read_only(disk):
        status, _, error = cli(*STATS)
        assert status == 1 and 'stats/digits.train.classifier.npz is missing, and stats cannot be written' in error
        assert 'make it writable' in one_line(error)


def test_the_folder_of_the_classifier(disk, cli, monkeypatch):
    os.remove('stats/digits.classifier.pt')
    monkeypatch.setattr(inputs, 'labelled', never)
    with read_only(disk):
        status, _, error = cli(*STATS)
        assert status == 1 and 'stats/digits.classifier.pt is missing' in one_line(error)


def test_statistics_in_a_folder_that_cannot_be_written(disk, cli):
    assert cli(*STATS)[0] == 0
    with read_only(disk):
        status, out, _ = cli(*STATS)
        assert status == 0 and 'stats/digits.train.classifier.npz' in out


def test_the_folder_of_a_checkpoint_that_is_scored(disk, cli, monkeypatch):
    assert cli(*TINY, '--train', '--logdir=run')[0] == 0
    for place in ('evaluate.load_statistics', 'nll.estimate'):
        monkeypatch.setattr(place, never)
    with read_only(disk):
        for mode in ('--eval', '--nll'):
            status, _, error = cli(mode, '--logdir=run', '--feature_net=classifier', '--device=cpu')
            assert status == 1 and re.search(
                'cannot write run\\S*: .*; copy the checkpoint to a folder of your own', one_line(error)
            )


def test_a_folder_for_samples(disk, tmp_path, cli):
    assert cli(*TINY, '--train', f'--logdir={tmp_path / "run"}')[0] == 0
    with read_only(disk):
        status, _, error = cli(*TINY, '--sample', f'--logdir={tmp_path / "run"}', '--out=samples')
        assert status == 1 and "'samples'" in one_line(error) and 'sampling' not in error
