"""Statistics and classifiers are rebuilt if their data set has changed, or refused if --fid_cache names them."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY
from image_files import zip_of
from PIL import Image
from runs import config_of, one_line
from score_fakes import small_net

import dataset
import evaluate
import score
from run import inputs
from score.images import rgb, unit_range

STATS = [*TINY, '--stats', '--img_size=4']
CLASSIFIER = ['--feature_net=classifier', '--img_size=8']


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Enter a new working folder, replace Inception by a tiny network, and train classifiers for only two steps."""
    monkeypatch.chdir(tmp_path)
    net = dataclasses.replace(
        small_net(), prepare=lambda x: torch.nn.functional.interpolate(rgb(unit_range(x)), (4, 4))
    )
    monkeypatch.setitem(score.FEATURE_NETS, 'inception', lambda *_, **__: net)
    monkeypatch.setitem(score.classifier.cache_classifier.__kwdefaults__, 'steps', 2)
    return tmp_path


def fill(folder, n=12, seed=0, size=8):
    rng = np.random.default_rng(seed)
    for i in range(n):
        path = folder / ('cat' if i % 2 else 'dog') / f'{i}.ppm'  # uncompressed, so all files have one size
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    return folder


def caches():
    return sorted(os.listdir('stats'))


@pytest.mark.parametrize('names', [('siteA/train', 'siteB/train'), ('faces.2023', 'faces.2024')])
def test_two_data_sets_do_not_share_one(here, cli, names):
    folders = [fill(here / name, seed=i) for i, name in enumerate(names)]
    for turn, folder in enumerate((*folders, *folders)):
        status, _, error = cli(*STATS, f'--dataset={folder}')
        assert status == 0, error
        assert ('is missing: building it from the 12 images' in error) == (turn < 2) and 'was made' not in error
    assert len(caches()) == 2 and all(name.startswith(f'{folders[0].name[:-2]}') for name in caches())
    a, b = (score.load_statistics(f'stats/{name}') for name in caches())
    assert not np.array_equal(a.mu, b.mu) and {a.source['from'], b.source['from']} == set(map(str, folders))


def grow(folder):
    fill(folder, 15)


def shrink(folder):
    (folder / 'cat' / '1.ppm').unlink()


def overwrite(folder):
    fill(folder, seed=1)
    for path in folder.rglob('*.ppm'):
        os.utime(path, (10**9, 10**9))


def rename(folder):
    (folder / 'cat' / '1.ppm').rename(folder / 'cat' / 'one.ppm')


@pytest.mark.parametrize(
    'change, why',
    [
        (grow, 'was made from 12 files, not 15'),
        (shrink, 'was made from 12 files, not 11'),
        (overwrite, 'was made from files that have changed since'),
        (rename, 'was made from files that have changed since'),
    ],
    ids=lambda value: getattr(value, '__name__', None),
)
def test_a_changed_folder(here, cli, change, why):
    folder = fill(here / 'faces')
    assert cli(*STATS, f'--dataset={folder}')[0] == 0
    (name,) = caches()
    change(folder)
    status, out, error = cli(*STATS, f'--dataset={folder}')
    n = len(list(folder.rglob('*.ppm')))
    assert status == 0 and f'stats/{name} {why}: building it from the {n} images of {folder}' in error
    assert score.load_statistics(f'stats/{name}').made['n'] == n and f'stats/{name}: {n} images of 4x4' in out
    assert 'building' not in cli(*STATS, f'--dataset={folder}')[2]


def test_a_changed_zip_and_one_packed_again(here, cli):
    folder = fill(here / 'faces')
    zip_of(folder, here / 'faces.zip')
    assert cli(*STATS, '--dataset=faces.zip')[0] == 0
    assert caches()[0].startswith('faces-4-')
    overwrite(folder)
    fill(folder)  # the same pixels with another date
    zip_of(folder, here / 'faces.zip')
    assert 'building' not in cli(*STATS, '--dataset=faces.zip')[2]
    overwrite(folder)
    zip_of(folder, here / 'faces.zip')
    assert 'was made from files that have changed since' in cli(*STATS, '--dataset=faces.zip')[2]


def test_the_same_folder_by_another_way_there_is_the_same(here, cli):
    fill(here / 'faces')
    assert cli(*STATS, '--dataset=faces')[0] == 0
    assert 'building' not in cli(*STATS, '--dataset=./faces/')[2]
    assert 'building' not in cli(*STATS, f'--dataset={here}/faces')[2]


def test_a_file_that_fid_cache_names_is_refused(here, cli):
    for i, name in enumerate(('A', 'B')):
        fill(here / name, seed=i)
    assert cli(*STATS, '--dataset=A', '--fid_cache=a.npz')[0] == 0
    content = (here / 'a.npz').read_bytes()
    for argv, why in (
        (['--dataset=B'], f'a.npz: made from {here}/A, not {here}/B'),
        (['--dataset=A', '--img_size=8'], 'a.npz: made with img_size 4, not 8'),
        (['--dataset=digits'], f'a.npz: made from {here}/A, not digits'),
    ):
        status, _, error = cli(*STATS, *argv, '--fid_cache=a.npz')
        assert status == 1 and f'{why}; ask for that, or build it anew' in one_line(error)
        status, _, error = cli(*TINY, '--eval', '--images=B', *argv, '--fid_cache=a.npz')
        assert status == 1 and 'a.npz: made ' in one_line(error)
    grow(here / 'A')
    status, _, error = cli(*STATS, '--dataset=A', '--fid_cache=a.npz')
    assert status == 1 and 'a.npz: made from 12 files, not 15' in one_line(error)
    assert (here / 'a.npz').read_bytes() == content and not os.path.exists('stats')


def test_images_against_a_named_file_alone(here, cli):
    fill(here / 'A')
    assert cli(*STATS, '--dataset=A', '--fid_cache=a.npz')[0] == 0
    shutil.rmtree('A')  # as if someone else had built the cache
    fill(here / 'B', seed=1)
    status, out, error = cli('--eval', '--images=B', '--fid_cache=a.npz', '--device=cpu')
    assert status == 0, error
    assert f'against a.npz: 12 images of 4x4, RGB, from {here}/A' in out


def test_statistics_that_do_not_say_are_used_and_the_data_set_is_not_opened(here, cli, monkeypatch):
    monkeypatch.setattr(dataset, 'load', lambda *_: pytest.fail('opened'))
    os.mkdir('stats')
    for path in ('stats/cifar10.train.npz', 'theirs.npz'):
        np.savez(path, mu=np.zeros(6), sigma=np.eye(6))
    for argv in ([], ['--fid_cache=theirs.npz', '--dataset=gone']):
        status, out, error = cli('--stats', *argv, '--device=cpu')
        assert status == 0 and 'building' not in error
        assert out.endswith('.npz: an unknown number of images, which the file does not name\n')


def test_a_named_data_set_is_known_by_its_name(here, cli, monkeypatch):
    argv = [*TINY, '--stats', '--img_size=8']
    assert cli(*argv)[0] == 0
    assert score.load_statistics('stats/digits.train.npz').source == {
        'from': 'digits', 'split': 'train', 'img_size': 8, 'channels': 1
    }  # fmt: skip
    monkeypatch.setattr(dataset, 'load', lambda *_: pytest.fail('opened'))
    assert 'building' not in cli(*argv)[2]
    status, _, error = cli(*argv, '--split=test', '--fid_cache=stats/digits.train.npz')
    assert status == 1 and 'made with split train, not test' in one_line(error)


def test_a_database_that_grew(here):
    os.makedirs('lsun/cat')
    config, found = config_of('--dataset=lsun_cat', '--data_dir=.'), []
    for size in (10, 20):
        (here / 'lsun' / 'cat' / 'data.mdb').write_bytes(bytes(size))
        found.append(inputs.identity(config))
    with pytest.raises(score.StaleError, match='made with bytes 10, not 20'):
        score.check_source('lsun.npz', *found)


def test_a_classifier_and_the_statistics_by_it(here, cli):
    argv = [*STATS, *CLASSIFIER, '--dataset=train']
    fill(here / 'train')
    assert cli(*argv)[0] == 0
    fill(here / 'test', 4, seed=1)
    status, _, error = cli(*argv, '--test_dataset=test')  # has its own cache beside the other
    assert status == 0 and error.count('is missing') == 2 and 'was made' not in error and len(caches()) == 4
    assert 'training' not in cli(*argv)[2] and 'training' not in cli(*argv, '--test_dataset=test')[2]
    fill(here / 'test', 6, seed=1)
    status, _, error = cli(*argv, '--test_dataset=test')
    lines = [line for line in error.splitlines() if ' was made ' in line]
    assert status == 0 and len(lines) == 2, error
    error_of_test = cli(*argv, '--test_dataset=test', '--split=test')[2]
    assert 'building it from the 6 images of test' in error_of_test
    assert 'was made with test images from 4 files, not 6: training a classifier on 12 images' in lines[0]
    assert 'was made with weights_hash ' in lines[1] and 'building it from the 12 images of train' in lines[1]
    assert 'reads' in error and 'of 6 test images as labelled' in error


def test_a_class_more(here, cli):
    argv = [*STATS, *CLASSIFIER, '--dataset=train']
    fill(here / 'train')
    assert cli(*argv)[0] == 0
    (here / 'train' / 'ant').mkdir()
    (here / 'train' / 'dog' / '0.ppm').rename(here / 'train' / 'ant' / '0.ppm')
    error = cli(*argv)[2]
    assert "was made with classes ['cat', 'dog'], not ['ant', 'cat', 'dog']: training a classifier" in error


def test_features_are_kept_and_rebuilt_beside_the_statistics(here, cli):
    fill(here / 'train')
    argv = [*STATS, '--dataset=train']
    assert cli(*argv)[0] == 0
    before = {name: (here / 'stats' / name).read_bytes() for name in caches()}
    argv += ['--metrics=prdc']
    status, _, error = cli(*argv)
    assert status == 0 and error.count('building it') == 1 and '.features.npz is missing: building it' in error
    assert all((here / 'stats' / name).read_bytes() == content for name, content in before.items())
    overwrite(here / 'train')
    status, _, error = cli(*argv)
    assert status == 0 and error.count('was made from files that have changed since: building it') == 2
    assert cli(*argv)[2].count('building it') == 0 and len(caches()) == 2


def test_authenticity_needs_a_test_split(here, cli):
    fill(here / 'train')
    argv = [*STATS, '--dataset=train', '--metrics=authenticity']
    status, _, error = cli(*argv)
    assert status == 1 and 'train has no test split of its own: name one with --test_dataset' in one_line(error)
    fill(here / 'test', seed=1)
    status, _, error = cli(*argv, '--test_dataset=test')
    assert status == 0, error
    features = [name for name in caches() if name.endswith('.features.npz')]
    assert len([name for name in features if '.test.' in name]) == 1


def test_other_ranks_take_what_the_first_leaves(here, cli, monkeypatch):
    fill(here / 'train')
    config = config_of(*STATS, *CLASSIFIER, '--dataset=train')
    evaluate.load_statistics(config, evaluate.load_feature_net(config))
    overwrite(here / 'train')
    monkeypatch.setattr('run.distributed.local_rank', lambda: 1)
    monkeypatch.setattr('run.inputs.dataset', lambda *_: pytest.fail('opened'))
    evaluate.load_statistics(config, evaluate.load_feature_net(config))
    assert len(caches()) == 2


@pytest.mark.parametrize('source', ['[]', '{', '"faces"', '7'])
def test_a_source_that_is_none_is_a_damaged_file(here, cli, source):
    np.savez('a.npz', mu=np.zeros(6), sigma=np.eye(6), source=source)
    status, _, error = cli(*STATS, '--fid_cache=a.npz')
    assert status == 1 and 'a.npz: truncated, or not an npz of plain arrays' in one_line(error)


def test_a_source_of_strange_values_is_another(here):
    asked = {'from': 'a', 'classes': ['x'], 'test': {'from': 'b'}, 'count': 3}
    for made in ({}, {'from': 'a', 'classes': 3, 'test': [], 'count': None}, {**asked, 'test': {}}):
        with pytest.raises(score.StaleError, match='made '):
            score.check_source('a.npz', made, asked)
    score.check_source('a.npz', {**asked, 'more': 1}, asked)
