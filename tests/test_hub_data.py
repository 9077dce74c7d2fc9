"""Data sets of a stand-in for the Hugging Face Hub, which lie there as parquet."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from functools import partial
from pathlib import Path

import hub_server
import pytest
from conftest import TINY
from hub_server import PIECE, TOKEN, Hub, files_of
from runs import Forked, config_of, differences, load, one_line, without_logdir

pytest.importorskip('pyarrow')

from parquet_files import features_of, images, write

from interop import card
from run import hub, inputs, reference
from score.files import file_digest

CLASSES = ['zero', 'one', 'two']
CONVERTED = 'refs/convert/parquet'


@pytest.fixture
def server(tmp_path):
    files = tmp_path / 'files'
    for i, (name, n) in enumerate({'train/0000': 12, 'train/0001': 12, 'test/0000': 9}.items()):
        columns = {'image': features_of(images(n, seed=i)), 'label': [k % 3 for k in range(n)], 'classes': CLASSES}
        write(files / 'all' / f'{name}.parquet', **columns)
    server, held = Hub(), files_of(files)
    later = {f'data/{Path(name).name}': content for name, content in held.items() if 'test' in name}
    server.repos = {
        'datasets/me/digits': {CONVERTED: held, 'main': {'README.md': b'---\n---\n'}, 'v1': later},
        'datasets/me/two': {CONVERTED: {**held, **{name.replace('all', 'b'): held[name] for name in held}}},
        'datasets/me/own': {'main': later},
        'datasets/me/pictures': {'main': {'a.png': b''}},
    }
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def main_py(server, tmp_path, monkeypatch):
    """Run main.py --train in tmp_path with the server as its Hub -> (exit status, stderr)."""
    monkeypatch.chdir(tmp_path)
    return partial(hub_server.main_py, server, tmp_path / 'cache', tmp_path / 'log', *TINY)


def downloaded(server):
    return [path for method, path, _ in server.asked if method == 'GET' and 'resolve' in path]


def test_a_data_set_is_trained_on_as_the_same_files_are_and_then_needs_no_connection(server, main_py, tmp_path):
    argv = '--train', '--cond', '--sample', '--labels=two'
    status, error = main_py(*argv, '--dataset=hf:me/digits', '--logdir=run')
    assert status == 0, error
    assert f'hf:me/digits: me/digits of commit {hub_server.commit_of(CONVERTED)}, {CONVERTED}' in error
    assert 'hf:me/digits, train: 24 images of 8x8, colour, 3 classes: zero one two, from image and label of 2' in error
    config = load('run')['config']
    assert config['dataset'] == 'hf:me/digits' and config['class_names'] == CLASSES
    assert len(downloaded(server)) == 3
    assert main_py(*argv[:2], f'--dataset={tmp_path / "files"}', '--logdir=folder')[0] == 0
    assert differences(*({**load(name), 'config': None} for name in ('run', 'folder'))) == []
    server.asked.clear()
    offline = [*argv, '--dataset=hf:me/digits', '--logdir=offline']
    assert main_py(*offline, HF_HUB_OFFLINE='1')[0] == 0 and not server.asked
    assert differences(*(without_logdir(load(each)) for each in ('run', 'offline'))) == []


def test_without_a_whole_cache_a_line_says_so(server, main_py, tmp_path):
    argv = '--train', '--dataset=hf:me/digits', '--logdir=run'
    status, error = main_py(*argv, HF_HUB_OFFLINE='1')
    assert status == 1 and 'hf:me/digits: it is not in the cache, and the Hub is not asked' in one_line(error)
    assert main_py('--train', '--dataset=hf:me/digits/all/test', '--logdir=test')[0] == 0  # a part of the files
    status, error = main_py(*argv, HF_HUB_OFFLINE='1')
    assert status == 1 and 'hf:me/digits: it is not in the cache' in one_line(error)
    assert not Path('run').exists() and main_py(*argv)[0] == 0


def test_a_download_that_breaks_off_goes_on(server, main_py, tmp_path):
    name = 'all/train/0001.parquet'
    held = server.repos['datasets/me/digits'][CONVERTED]
    write(tmp_path / 'large.parquet', image=features_of(images(1200)), label=[0] * 1200, classes=CLASSES)
    held[name] = (tmp_path / 'large.parquet').read_bytes()
    server.cut.add(name)
    assert any(main_py('--train', '--dataset=hf:me/digits', '--logdir=run')[0] == 0 for _ in range(2))
    asked = [begin for method, path, begin in server.asked if method == 'GET' and path.endswith(name)]
    assert len(held[name]) > 2 * PIECE
    assert asked == [None, f'bytes={len(held[name]) // 2 // PIECE * PIECE}-']


def test_other_bytes_than_the_hub_holds_are_refused(server, main_py):
    server.spoilt.add('all/train/0001.parquet')
    status, error = main_py('--train', '--dataset=hf:me/digits', '--logdir=run')
    assert status == 1 and '0001.parquet is not what the Hub holds: its digest is' in one_line(error)
    assert not Path('run').exists()


def test_a_file_is_read_for_its_digest_until_it_is_whole_and_again_once_it_has_changed(tmp_path, monkeypatch):
    content, read = b'x' * 99, []
    blob, file = tmp_path / hashlib.sha256(content).hexdigest(), tmp_path / 'a.parquet'
    file.symlink_to(blob)
    monkeypatch.setattr(hub, 'file_digest', lambda path: (read.append(path), file_digest(path))[1])
    for written, reads, whole in ((content[1:] + b'y', 2, False), (content, 1, True), (content[1:] + b'z', 2, False)):
        blob.write_bytes(written)
        os.utime(blob, (9, 9))
        for _ in range(2):
            with contextlib.nullcontext() if whole else pytest.raises(hub.HubError, match='is not what the Hub holds'):
                hub.check_once(file)
        assert len(read) == reads
        read.clear()
        time.sleep(0.05)  # the clock of some file systems stands still for a few milliseconds


def tell(variables, function, arguments, out):
    """Write what a function returns for each of the arguments, or its error, as JSON. It runs in place of main.py."""
    hub_server.enter(variables)
    said = {}
    for argument in arguments:
        try:
            said[argument] = function(argument)
        except Exception as error:
            said[argument] = f'{type(error).__name__}: {error}'
    Path(out).write_text(json.dumps(said))
    os._exit(0)


def told(server, tmp_path, function, *arguments, **variables):
    out, log = tmp_path / 'told.json', tmp_path / 'log'
    variables = server.environment(tmp_path / 'cache', **variables)
    child = Forked(log=log, before=partial(tell, variables, function, arguments, out))
    assert child.status() == 0, child.error()
    return json.loads(out.read_text())


def test_what_is_not_there_or_not_clear_is_said(server, main_py, tmp_path):
    server.private.add('datasets/me/digits')
    status, error = main_py('--train', '--dataset=hf:me/digits', '--logdir=run')
    closed = 'hf:me/digits: me/digits is not there or not open to you: see its name, run hf auth login or set HF_TOKEN'
    assert status == 1 and closed in one_line(error) and not Path('run').exists()
    assert main_py('--train', '--dataset=hf:digits', '--logdir=run')[0] == 2
    refused = {
        'hf:me/none': 'HubError: hf:me/none: me/none is not there or not open to you',
        'hf:me/own@v2': 'HubError: hf:me/own@v2: me/own has no revision v2',
        'hf:me/pictures': 'HubError: hf:me/pictures holds no parquet files: give another revision or path',
        'hf:me/own/nothing': 'HubError: hf:me/own/nothing holds no parquet files',
        'hf:me/two': 'DataError: hf:me/two holds 2 data sets: name one of its folders all b',
        'hf:digits': 'UsageError: hf:digits is no address on the Hub: write OWNER/NAME',
        'hf:me/digits': f'HubError: {closed}',
    }
    for address, said in told(server, tmp_path, hub.data_set, *refused).items():
        assert said[: len(refused[address])] == refused[address]
    assert not downloaded(server)
    found = told(server, tmp_path, hub.data_set, 'hf:me/digits@v1', 'hf:me/two/b', 'hf:me/own', HF_TOKEN=TOKEN)
    files = {address: sorted(files_of(Path(place))) for address, (place, _) in found.items()}
    assert files == {
        'hf:me/digits@v1': ['data/0000.parquet'],
        'hf:me/two/b': ['test/0000.parquet', 'train/0000.parquet', 'train/0001.parquet'],
        'hf:me/own': ['data/0000.parquet'],  # there is no converted copy
    }
    assert told(server, tmp_path, hub.data_set, 'hf:me/own', HF_HUB_OFFLINE='1') == {'hf:me/own': found['hf:me/own']}


def test_if_the_hub_does_not_answer_for_the_converted_copy_main_is_not_taken(server, tmp_path):
    server.repos['datasets/me/digits']['main'] = server.repos['datasets/me/own']['main']
    server.silent.add(CONVERTED)
    (said,) = told(server, tmp_path, hub.data_set, 'hf:me/digits').values()
    assert said.startswith(
        'HubError: hf:me/digits: it is not in the cache, and the Hub is not asked or does not answer'
    )
    assert not downloaded(server)


def identity(split):
    return inputs.identity(config_of(*TINY, '--dataset=hf:me/digits'), split)


def test_caches_know_the_data_set_by_its_address_and_commit(server, tmp_path):
    commit, first = hub_server.commit_of(CONVERTED), told(server, tmp_path, identity, 'train', 'test')
    for split, n in (('train', 24), ('test', 9)):
        expected = {'from': 'hf:me/digits', 'split': split, 'count': n, 'files': commit, 'classes': CLASSES}
        assert first[split].items() >= expected.items()
    shutil.rmtree(tmp_path / 'cache')
    assert told(server, tmp_path, identity, 'train', 'test') == first
    held = server.repos['datasets/me/digits']
    held['main'] = held.pop(CONVERTED)
    assert told(server, tmp_path, identity, 'train')['train'] == {
        **first['train'],
        'files': hub_server.commit_of('main'),
    }


def test_statistics_are_kept_by_the_address(tmp_path, monkeypatch):
    path = reference.statistics_path(config_of(*TINY, '--dataset=hf:me/digits'))
    monkeypatch.chdir(tmp_path)
    assert reference.statistics_path(config_of(*TINY, '--dataset=hf:me/digits')) == path
    assert path != reference.statistics_path(config_of(*TINY, '--dataset=hf:you/digits'))


def test_the_card_names_the_data_set():
    config = config_of('--dataset=hf:me/digits@v1', '--export=diffusers')
    metadata = card._metadata(config, 'run', [{'FID': 3.0, 'n': 9, 'weights': 'ema'}])
    assert metadata['datasets'] == ['me/digits']
    assert metadata['model-index'][0]['results'][0]['dataset'] == {'type': 'me/digits', 'name': 'me/digits'}
