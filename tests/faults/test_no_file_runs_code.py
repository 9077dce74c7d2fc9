"""A pickle that would run code, in any file that is read, is refused in one line and does not run."""

import os
import pickle

import lmdb
import numpy as np
import pytest
import torch
from conftest import TINY
from runs import one_line

import dataset
from score.files import ScoreError, file_digest
from score.inception import load_inception


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


def checkpoint(trap):
    os.makedirs('run')
    torch.save({'step': 1, 'ema_model': trap}, 'run/ckpt.pt')


def fallback(trap):
    os.makedirs('run')
    torch.save({'step': 1, 'ema_model': trap}, 'run/ckpt.prev.pt')


def legacy_checkpoint(trap):
    os.makedirs('run')
    torch.save({'step': 1, 'ema_model': trap}, 'run/ckpt.pt', _use_new_zipfile_serialization=False)


def classifier_cache(trap):
    torch.save({'state': trap}, 'stats/digits.classifier.pt')


def inception_weights(trap):
    torch.save({'state': trap}, 'inception.pth')


def statistics(trap):
    np.savez('stats/digits.train.classifier.npz', mu=np.array([trap]), sigma=np.array([[trap]]))


def images(trap):
    np.savez('images.npz', arr_0=np.array([trap]))


def cifar10(trap):
    os.makedirs('cifar')
    for name in [f'data_batch_{i}' for i in range(1, 6)]:
        with open(f'cifar/{name}', 'wb') as file:
            pickle.dump({'data': np.zeros((1, 3072), np.uint8), 'labels': [1], 'more': trap}, file)


def arrays(trap):
    np.savez('arrays.npz', x=np.zeros((9, 8, 8), np.uint8), y=np.array([trap] * 9))


CLASSIFIER = '--feature_net=classifier'


@pytest.mark.parametrize(
    'write, argv',
    [
        (checkpoint, ['--train']),
        (checkpoint, ['--sample']),
        (fallback, ['--train']),
        (legacy_checkpoint, ['--sample']),
        (classifier_cache, ['--stats', CLASSIFIER]),
        (inception_weights, ['--stats', '--inception_weights=inception.pth']),
        (statistics, ['--stats', CLASSIFIER]),
        (images, ['--eval', '--images=images.npz', CLASSIFIER]),
        (cifar10, ['--train', '--dataset=cifar']),
        (arrays, ['--train', '--dataset=arrays.npz']),
    ],
    ids=lambda value: value.__name__ if callable(value) else value[0],
)
def test_a_pickle_is_refused(here, cli, write, argv):
    write(RunsCode(here / 'ran'))
    status, _, error = cli(*TINY, '--logdir=run', *argv)
    assert status == 1 and one_line(error)
    assert not (here / 'ran').exists()


def test_inception_weights_of_the_right_hash_are_refused_too(here):
    inception_weights(RunsCode(here / 'ran'))
    with pytest.raises(ScoreError, match='not a file of plain tensors'):
        load_inception('inception.pth', file_digest('inception.pth'))
    assert not (here / 'ran').exists()


def test_a_cache_that_torchvision_would_unpickle_is_not_read(here):
    root = here / 'lsun' / 'cat'
    root.mkdir(parents=True)
    lmdb.open(str(root), map_size=2**20).close()
    with open('_cache_' + ''.join(filter(str.isalpha, str(root))), 'wb') as file:
        pickle.dump(RunsCode(here / 'ran'), file)
    with pytest.raises(dataset.DataError, match='the database is empty'):
        dataset.load('lsun_cat', str(here), 8)
    assert not (here / 'ran').exists()
