"""Send runs to wandb and trackio as their users have them, offline, and to trackers that fail."""

import importlib
import json
import os
import struct
import sys
import threading
from functools import partial
from unittest.mock import MagicMock

import pytest
from conftest import TINY
from PIL import Image
from runs import Forked, differences, load, one_line, scalars

from run import trackers
from run.trackers import TRACKERS, Background, Hosted

FLAGS = [*TINY, '--train', '--seed=3', '--sample_step=2']


def without_names(state):
    """Return a checkpoint without the flags in which the runs of these tests differ."""
    return {**state, 'config': {key: state['config'][key] for key in state['config'].keys() - {'logdir', 'track'}}}


def rows_of_wandb(logdir):
    """Return ({(id, name)}, config, rows) of what wandb wrote offline: a header of 7 bytes, then LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs, config, rows = set(), {}, []
    for path in sorted(logdir.glob('wandb/offline-run-*/*.wandb')):
        content, at, record = path.read_bytes(), 7, b''
        while at + 7 <= len(content):
            left = 32768 - at % 32768
            if left < 7:
                at += left
                continue
            _, length, kind = struct.unpack_from('<IHB', content, at)
            record += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # a whole record, or the last part of one
                read, record = Record.FromString(record), b''
                runs |= {(read.run.run_id, read.run.display_name)} - {('', '')}
                config |= {item.key: json.loads(item.value_json) for item in read.config.update}
                items = {item.key or '/'.join(item.nested_key): item.value_json for item in read.history.item}
                rows += [{key: json.loads(value) for key, value in items.items()}] * bool(items)
    return runs, config, rows


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """Train without a tracker but TensorBoard."""
    folder = tmp_path_factory.mktemp('plain')
    assert Forked(*FLAGS, f'--logdir={folder}', log=folder / 'log').status() == 0
    return folder


def offline(folder):
    os.environ.update(WANDB_MODE='offline', TRACKIO_DIR=str(folder), HF_HUB_OFFLINE='1')


def test_a_run_that_wandb_and_trackio_show_is_resumed_and_changes_no_bit(plain, tmp_path):
    here, log = tmp_path / 'run', tmp_path / 'log'
    for total in (2, 4):
        argv = [*FLAGS, '--track=wandb,trackio', f'--logdir={here}', f'--total_steps={total}']
        child = Forked(*argv, log=log, before=partial(offline, tmp_path / 'trackio'))
        assert child.status() == 0 and '--track=' not in child.error(), child.error()
    assert differences(without_names(load(plain)), without_names(load(here))) == []
    assert not list(here.glob('events.*'))
    losses = scalars(plain, 'loss')
    runs, config, rows = rows_of_wandb(here)
    assert (
        runs == {(json.loads((here / 'wandb.json').read_text())['id'], 'run')}
        and len(list(here.glob('wandb/offline*'))) == 2
    )
    assert (config['total_steps'], config['ch_mult']) == (4, [1]) and '--total_steps=4\n' in config['flagfile']
    assert {row['step']: row['loss'] for row in rows if 'loss' in row} == pytest.approx(losses)
    assert [row['step'] for row in rows if 'sample/path' in row] == [2, 4]
    assert [row['_step'] for row in rows] == list(range(len(rows)))

    os.environ['TRACKIO_DIR'] = str(tmp_path / 'trackio')
    storage = importlib.import_module('trackio.sqlite_storage').SQLiteStorage
    (name,) = storage.get_runs('ddpm')
    assert name == f'run-{json.loads((here / "trackio.json").read_text())["id"]}'
    assert storage.get_run_config('ddpm', name)['batch_size'] == 8
    rows = storage.get_logs('ddpm', name)
    assert {row['step']: row['loss'] for row in rows if 'loss' in row} == pytest.approx(losses)
    assert [row['step'] for row in rows if 'sample' in row] == [2, 4]


class Failing:
    """A tracker that calls `fail` in one method."""

    def __init__(self, method, fail):
        self.method, self.fail = method, fail

    def __getattr__(self, name):
        return self.fail if name == self.method else lambda *_: None


def refuse(*_):
    raise RuntimeError('the server\nhas no room')


@pytest.mark.parametrize('method', ['flags', 'add', 'close', 'made'])
def test_a_tracker_that_raises_warns_once_and_changes_no_bit(plain, cli, tmp_path, monkeypatch, method):
    make = refuse if method == 'made' else partial(Failing, method, refuse)
    monkeypatch.setitem(TRACKERS, 'wandb', lambda folder: Background('wandb', make))
    status, _, error = cli(*FLAGS, '--track=tensorboard,wandb', f'--logdir={tmp_path / "run"}')
    assert status == 0 and error.count('--track=wandb') == 1
    assert '--track=wandb: RuntimeError: the server has no room; the run goes on without it' in error
    assert differences(without_names(load(plain)), without_names(load(tmp_path / 'run'))) == []
    assert scalars(plain, 'loss') == scalars(tmp_path / 'run', 'loss')


@pytest.mark.parametrize('waiting, message', [(100, 'not taken everything within 0.2 s'), (2, 'it does not keep up')])
def test_a_tracker_that_hangs_warns_once_and_changes_no_bit(plain, cli, tmp_path, monkeypatch, waiting, message):
    monkeypatch.setattr(trackers, 'PATIENCE', 0.2)
    monkeypatch.setattr(trackers, 'WAITING', waiting)
    end = threading.Event()
    monkeypatch.setitem(
        TRACKERS, 'wandb', lambda folder: Background('wandb', partial(Failing, 'flags', lambda *_: end.wait(60)))
    )
    saved = []
    close = Background.close
    monkeypatch.setattr(
        Background, 'close', lambda self: saved.append((tmp_path / 'run' / 'ckpt.pt').exists()) or close(self)
    )
    status, _, error = cli(*FLAGS, '--track=wandb', f'--logdir={tmp_path / "run"}')
    end.set()
    assert status == 0 and error.count('--track=wandb') == 1 and message in error
    assert saved == [True]  # before the run waits for it
    assert differences(without_names(load(plain)), without_names(load(tmp_path / 'run'))) == []


class Service:
    """The run of a service like wandb, for `Hosted`: keeps what it is sent."""

    def __init__(self):
        self.opened, self.rows = [], []

    def begin(self, folder, id, values):
        self.opened.append((id, values))
        return self, lambda row, step, n: self.rows.append((n, step, row)), lambda picture: picture.size

    def finish(self):
        self.opened.append('finished')


def test_a_killed_run_sends_each_step_once_and_scores_come_later(tmp_path):
    service = Service()
    first = Hosted(tmp_path, 'wandb', service.begin)
    first.restart(0)
    first.flags('--lr=1\n', {'lr': 1.0, 'device': object})
    for step in (1, 2, 3):
        first.add(step, {'loss': step}, {})
    first.add(2, {}, {'sample': Image.new('RGB', (4, 5))})
    resumed = Hosted(tmp_path, 'wandb', service.begin)  # the first was killed; the checkpoint is of step 2
    resumed.restart(3)
    resumed.flags('--lr=1\n', {'lr': 1.0})
    resumed.add(3, {'loss': 3, 'new': 7}, {})
    resumed.add(3, {}, {'sample': Image.new('RGB', (4, 5))})
    resumed.add(4, {'loss': 4}, {})
    resumed.close()
    scored = Hosted(tmp_path, 'wandb', service.begin)  # --eval, twice
    for fid in (2.0, 1.0):
        scored.add(2, {'FID_EMA': fid}, {})
    scored.close()
    assert service.rows == [
        (0, 1, {'loss': 1}), (1, 2, {'loss': 2}), (2, 3, {'loss': 3}), (3, 2, {'sample': (4, 5)}),
        (4, 3, {'new': 7}), (5, 3, {'sample': (4, 5)}), (6, 4, {'loss': 4}), (7, 2, {'FID_EMA': 2.0}),
        (8, 2, {'FID_EMA': 1.0}),
    ]  # fmt: skip
    (id, values), second, finished, third, _ = service.opened
    assert values == {'lr': 1.0, 'device': str(object), 'flagfile': '--lr=1\n'} and finished == 'finished'
    assert second[0] == third[0] == id and third[1] == {}
    anew = Hosted(tmp_path, 'wandb', service.begin)
    anew.restart(0)
    anew.add(1, {'loss': 1}, {})
    assert service.opened[-1][0] != id and service.rows[-1] == (0, 1, {'loss': 1})
    (tmp_path / 'wandb.json').write_text('{"id": 3}')
    with pytest.raises(ValueError, match='wandb.json cannot be read .* remove it, and a new run begins'):
        Hosted(tmp_path, 'wandb', service.begin)


def test_the_exit_hook_of_wandb_waits_no_longer_than_a_run(tmp_path, monkeypatch):
    begin = MagicMock()
    monkeypatch.setattr('wandb.init', begin)
    trackers._wandb(str(tmp_path), 'id', {})
    settings = begin.call_args.kwargs['settings']
    assert settings.init_timeout == settings.finish_timeout == trackers.PATIENCE


def test_scores_go_to_the_trackers_too(cli, tmp_path, monkeypatch):
    service = Service()
    make = partial(Hosted, tmp_path / 'run', 'wandb', service.begin)
    monkeypatch.setitem(TRACKERS, 'wandb', lambda folder: Background('wandb', make))
    argv = f'--logdir={tmp_path / "run"}', '--track=wandb'
    points = '--dataset=moons', '--net=point_mlp'
    assert cli(*TINY, *points, *argv, '--train', '--total_steps=2')[0] == 0
    assert cli(*argv, '--eval', '--num_images=20', '--device=cpu')[0] == 0
    n, step, row = service.rows[-1]
    assert step == 2 and {'SW_EMA', 'SW_data_EMA'} == row.keys()
    assert len({each[0] for each in service.opened if each != 'finished'}) == 1


@pytest.mark.parametrize('name', ['wandb', 'trackio'])
def test_without_the_package_the_line_names_the_requirements(cli, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    status, _, error = cli(*TINY, '--train', f'--track={name}', f'--logdir={tmp_path / "run"}')
    assert status == 2 and f'--track={name} needs a package: pip install -r requirements-track.txt' in one_line(error)
    assert not (tmp_path / 'run').exists()


def test_a_tracker_that_there_is_not_is_named(cli):
    status, _, error = cli('--train', '--track=wanb')
    assert status == 2 and 'there is no wanb among tensorboard wandb trackio: is it wandb?' in one_line(error)
