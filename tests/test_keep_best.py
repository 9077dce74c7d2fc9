"""--keep_best and eval.png: which checkpoint stays, what the curve shows, after restarts too, and what is refused."""

import json
import os
import sys

import pytest
import torch
from conftest import TINY
from PIL import Image
from runs import differences, load, one_line

import evaluate
from draw import picture
from run import checkpoint, files

ARGV = [*TINY, '--train', '--logdir=run', '--eval_step=2', '--num_images=20', '--lr=0.01']
BEST = [*ARGV, '--keep_best=FID']


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """Return the dict {step: FID} that evaluations in training give, in an empty working folder. It may be changed.

    Keys of `how`, which is an attribute, replace what else the records hold.
    """
    monkeypatch.chdir(tmp_path)

    class Script(dict):
        how = {}

    script = Script()

    def give(config, net, step, interrupted):
        values = {'step': step, 'weights': 'ema', 'n': 20, 'T': 8, 'sample_steps': 0, 'order': 1, 'FID': script[step]}
        record = values | script.how
        with open('run/eval.txt', 'a') as file:
            file.write(json.dumps(record) + '\n')
        return record

    monkeypatch.setattr(evaluate, 'evaluate', give)
    return script


@pytest.fixture
def panels(monkeypatch):
    """Return the list of the panels of each eval.png, as they are drawn."""
    drawn, curves = [], picture.curves
    monkeypatch.setattr(picture, 'curves', lambda *args, **how: drawn.append((args, how)) or curves(*args, **how))
    return drawn


def best():
    return load('run', 'ckpt.best.pt')


def test_the_best_checkpoint_stays_and_outlives_restarts(scripted, cli):
    scripted |= {2: 5.0, 4: 3.0, 6: 4.0, 8: 3.0, 10: 3.5, 12: 2.0}
    status, _, error = cli(*BEST, '--total_steps=6')
    assert status == 0 and error.count('is the best so far') == 2
    assert best()['best']['value'] == 3 and best()['best']['step'] == best()['step'] == 4
    assert cli(*BEST, '--total_steps=10')[0] == 0  # neither equal nor worse ones replace it
    assert best()['step'] == 4 and load('run')['step'] == 10
    status, _, error = cli(*BEST, '--total_steps=12')
    assert status == 0 and 'INFO: FID 2 of step 12 is the best so far: run/ckpt.best.pt' in error
    assert best()['step'] == 12
    assert {name for name in os.listdir('run') if '.pt' in name} == {'ckpt.best.pt', 'ckpt.pt', 'ckpt.prev.pt'}


def test_it_is_the_checkpoint_of_its_step(scripted, cli):
    scripted |= {2: 5.0, 4: 3.0, 6: 4.0}
    assert cli(*BEST, '--total_steps=6')[0] == 0
    assert cli(*[*TINY, '--train', '--lr=0.01'], '--logdir=plain', '--total_steps=4')[0] == 0
    plain, kept = load('plain'), best()
    assert not [key for key in plain if key != 'config' and differences(plain[key], kept[key])]
    status, _, error = cli('--sample', '--ckpt=run/ckpt.best.pt', '--out=drawn')
    assert status == 0 and 'run/ckpt.best.pt: ema weights of step 4' in error and os.path.exists('drawn/samples.npz')


def test_the_larger_score_can_be_the_better_one(scripted, cli):
    scripted |= {2: 5.0, 4: 3.0, 6: 4.0}
    scripted.how = {'IS(classifier)': 1.5, 'feature_net': 'classifier'}
    assert cli(*ARGV, '--keep_best=IS', '--total_steps=2')[0] == 0
    scripted.how = {'IS(classifier)': 1.2, 'feature_net': 'classifier'}
    assert cli(*ARGV, '--keep_best=IS', '--total_steps=4')[0] == 0 and best()['step'] == 2
    scripted.how = {'IS(classifier)': 1.6, 'feature_net': 'classifier'}
    assert cli(*ARGV, '--keep_best=IS', '--total_steps=6')[0] == 0 and best()['best']['value'] == 1.6


@pytest.mark.parametrize('change', [{'n': 30}, {'weights_hash': 'f00'}, {'order': 2}])
def test_a_score_measured_in_another_way_is_not_compared(scripted, cli, change):
    scripted |= {2: 3.0, 4: 5.0}
    assert cli(*BEST, '--total_steps=2')[0] == 0
    scripted.how = change
    status, _, error = cli(*BEST, '--total_steps=4')
    assert status == 0 and 'run/ckpt.best.pt is the best by FID measured in another way: it is run/ckpt-2.pt' in error
    assert load('run', 'ckpt-2.pt')['best']['value'] == 3 and best()['best']['value'] == 5


@pytest.mark.parametrize('value', [None, float('nan'), float('-inf')])
def test_what_is_no_number_is_not_the_best(scripted, cli, value):
    scripted |= {2: value, 4: 3.0, 6: value}
    status, _, error = cli(*BEST, '--total_steps=6')
    assert status == 0 and error.count(f'is {value}: it is not compared') == 2 and best()['step'] == 4


def test_a_crash_while_the_best_is_written_loses_nothing(scripted, cli, monkeypatch):
    scripted |= {2: 5.0, 4: 3.0}
    assert cli(*BEST, '--total_steps=2')[0] == 0
    replace = files.replace

    def cut(source, target):
        if source.endswith('ckpt.pt.tmp') or target.endswith('prev.pt'):
            raise OSError(5, 'Input/output error')
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files, 'replace', cut)
        assert cli(*BEST, '--total_steps=4')[0] == 1
    assert load('run')['step'] == 2 and best()['step'] == 4
    assert cli(*BEST, '--total_steps=4')[0] == 0 and load('run')['step'] == best()['step'] == 4


def test_a_file_that_is_not_of_this_run_is_refused(scripted, cli):
    scripted |= {2: 5.0, 4: 3.0}
    assert cli(*ARGV, '--total_steps=2')[0] == 0 and not os.path.exists('run/ckpt.best.pt')
    assert 'best' not in load('run')
    state = torch.load('run/ckpt.pt', weights_only=True)
    for damage, phrase in (
        (lambda: torch.save(state, 'run/ckpt.best.pt'), 'was not kept by --keep_best: move it away to begin anew'),
        (lambda: torch.save({'best': [1]}, 'run/ckpt.best.pt'), 'is no checkpoint of this program'),
        (lambda: open('run/ckpt.best.pt', 'w').close(), 'is damaged or no checkpoint'),
        (lambda: os.remove('run/ckpt.pt'), 'is of a run whose run/ckpt.pt is gone: move it away to begin anew'),
    ):
        damage()
        status, _, error = cli(*BEST, '--total_steps=4')
        assert status == 1 and f'run/ckpt.best.pt {phrase}' in one_line(error)
    assert not os.path.exists('run/ckpt.pt')


def test_the_curve_holds_all_points_after_a_restart(scripted, panels, cli):
    scripted |= {2: 5.0, 4: 3.0, 6: None, 8: 4.0}
    assert cli(*ARGV, '--total_steps=4')[0] == 0
    with open('run/eval.txt', 'a') as file:  # by hand, with other settings, and cut off
        other = {'step': 3, 'weights': 'ema', 'n': 500, 'T': 8, 'sample_steps': 0, 'order': 1, 'FID': 1.0}
        file.write(json.dumps(other) + '\n' + json.dumps({**other, 'n': 20, 'step': 9}) + '\n{"step": 3, "wei\n')
    status, _, error = cli(*ARGV, '--total_steps=8')
    assert status == 0 and 'WARNING: run/eval.txt: line 5 is no record and is left out' in error
    (panel,), how = panels[-1]
    assert (panel['x'], panel['y'], panel['ylabel']) == ([2, 4, 8], [5.0, 3.0, 4.0], 'FID')
    assert how['title'] == '20 images, 8 sampling steps, order 1'
    assert Image.open('run/eval.png').size == (450, 380) and not os.path.exists('run/eval.png.tmp')
    os.remove('run/ckpt.pt')
    os.remove('run/ckpt.prev.pt')
    status, _, error = cli(*ARGV, '--total_steps=2')
    assert 'run/eval.txt is of a run before this one: eval.png may show its scores too' in error
    assert panels[-1][0][0]['x'] == [2]


def test_each_figure_has_a_panel(panels, here, cli):
    argv = ['--feature_net=classifier', '--metrics=fid,is,kid,kid_interval', '--total_steps=2']
    assert cli(*ARGV, *argv, '--cond')[0] == 0
    drawn, how = panels[-1]
    assert [panel['ylabel'] for panel in drawn] == ['IS', 'FID', 'KID', 'KID_all', 'label_accuracy']
    ending = 'classifier features, native protocol\nagainst stats/digits.train.classifier.npz'
    assert how['title'] == f'20 images, 8 sampling steps, order 1\n{ending}'
    assert Image.open('run/eval.png').size == (3 * 450, 2 * 380)


def test_without_matplotlib_training_goes_on(scripted, cli, monkeypatch):
    scripted |= {2: 5.0, 4: 3.0}
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    status, _, error = cli(*BEST, '--total_steps=4')
    assert status == 0 and best()['step'] == 4 and not os.path.exists('run/eval.png')
    assert error.count('WARNING: no run/eval.png: ') == 2 and 'pip install -r requirements.txt' in error


def test_where_nothing_can_be_computed_there_is_no_curve(scripted, cli):
    scripted |= {2: None}
    status, _, error = cli(*ARGV, '--total_steps=2')
    assert status == 0 and not os.path.exists('run/eval.png'), error


def test_names():
    assert checkpoint.best('logs/a.b/ckpt.pt') == 'logs/a.b/ckpt.best.pt'
