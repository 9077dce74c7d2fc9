"""Register each addition of docs/extending.md as it stands there, and use it through main's flags."""

import importlib
import json
import re

import numpy as np
import pytest
from conftest import ROOT, TINY
from PIL import Image
from runs import load, scalars

PAGE = (ROOT / 'docs' / 'extending.md').read_text(encoding='utf-8')
SECTION = re.compile(
    r'^## An? (?P<kind>[\w ]+)\n\nAdd .*?`(?P<path>[\w/]+)\.py:(?P<registry>[A-Z]+)`.*?'
    r'```python\n(?P<names>.*?)# in (?P=registry):\n(?P<entry>.*?)```.*?Use it with `(?P<flags>--[^`]+)`',
    re.DOTALL | re.MULTILINE,
)
ADDITIONS = {found['kind']: found for found in SECTION.finditer(PAGE)}


@pytest.fixture
def add(monkeypatch):
    """Register the addition of a section, and return its flags."""

    def register(kind):
        section = ADDITIONS[kind]
        module = importlib.import_module(section['path'].replace('/', '.'))
        namespace = dict(vars(module))
        exec(section['names'], namespace)
        for name, value in eval(f'{{{section["entry"]}}}', namespace).items():
            monkeypatch.setitem(getattr(module, section['registry']), name, value)
        return section['flags'].split()

    return register


def test_the_page_has_one_addition_of_each_kind():
    kinds = 'schedule', 'solver', 'loss', 'data set', 'network', 'metric', 'figure', 'operator', 'tracker'
    assert tuple(ADDITIONS) == kinds
    assert PAGE.count('```python') == len(ADDITIONS)


@pytest.mark.parametrize('kind', ['schedule', 'loss', 'data set', 'network'])
def test_a_model_trains_and_draws_with_it(add, tmp_path, cli, kind):
    argv = [*TINY, f'--logdir={tmp_path}', *add(kind)]
    assert cli('--train', *argv)[0] == 0 and cli('--sample', '--num_images=2', *argv)[0] == 0
    assert Image.open(tmp_path / 'samples' / '000001.png').size == (8, 8)
    assert kind != 'data set' or load(tmp_path)['config']['class_names'] == ['narrow', 'wide']


def test_a_solver_draws(add, tmp_path, cli):
    argv = [*TINY, '--lr=0.03', '--weights=net', f'--logdir={tmp_path}', '--num_images=2']  # far from eps = 0
    assert cli('--train', '--order=3m', *argv)[0] == 2  # not registered yet
    assert cli('--train', *argv)[0] == 0
    flags = add('solver')
    for order in ('1', '3m'):
        assert cli('--sample', *argv, *flags, f'--order={order}', f'--out={tmp_path / order}')[0] == 0
    first, second = (Image.open(tmp_path / order / '000000.png').tobytes() for order in ('1', '3m'))
    assert first != second and json.loads((tmp_path / '3m' / 'samples.json').read_text())['order'] == '3m'


def test_a_figure_is_drawn(add, tmp_path, cli):
    argv = [*TINY, f'--logdir={tmp_path}']
    assert cli('--train', *argv)[0] == 0 and cli(*add('figure'), *argv)[0] == 0
    assert (tmp_path / 'figures' / 'noise.png').exists()


def test_an_operator_edits(add, tmp_path, cli):
    argv = [*TINY, f'--logdir={tmp_path / "run"}']
    narrow = np.random.default_rng(0).integers(64, 192, (2, 8, 4, 1), dtype=np.uint8)
    np.savez(tmp_path / 'narrow.npz', arr_0=narrow)
    assert cli('--train', *argv)[0] == 0
    assert cli(*add('operator'), *argv, f'--images={tmp_path / "narrow.npz"}', f'--out={tmp_path / "out"}')[0] == 0
    wide = np.load(tmp_path / 'out' / 'samples.npz')['arr_0'].astype(float)
    assert wide.shape == (2, 8, 8, 1)
    unclipped = ((wide > 0) & (wide < 255)).reshape(2, 8, 4, 2).all(3)
    assert unclipped.any()
    assert abs(wide.reshape(2, 8, 4, 2).mean(3) - narrow[..., 0])[unclipped].max() <= 1


def test_a_metric_is_recorded(add, here, cli):
    argv = [*TINY, '--logdir=run', '--feature_net=classifier', '--num_images=20']
    assert cli('--train', *argv)[0] == 0
    status, out, error = cli(*add('metric'), *argv)
    assert status == 0 and 'MEANS(classifier): ' in out, error
    value = json.loads((here / 'run' / 'eval.txt').read_text())['MEANS(classifier)']
    assert value > 0 and scalars('run', 'MEANS_classifier_EMA') == {4: pytest.approx(value)}


def test_a_tracker_is_told_what_tensorboard_is(add, tmp_path, cli):
    assert cli('--train', *TINY, f'--logdir={tmp_path}', *add('tracker'))[0] == 0
    lines = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    assert lines[0] == {'restart': 0} and '--total_steps=4\n' in lines[1]['flags']
    assert {line['step']: line['loss'] for line in lines if 'loss' in line} == pytest.approx(scalars(tmp_path, 'loss'))
