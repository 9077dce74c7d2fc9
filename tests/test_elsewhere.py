"""Train, resume and use a run without what only POSIX has, as on Windows, and with spawned workers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from conftest import TINY
from runs import differences, load

WINDOWS = Path(__file__).parent / 'windows.py'


def elsewhere(*argv):
    """Run main.py in windows.py, and return what it writes to stderr."""
    command, env = [sys.executable, str(WINDOWS), *map(str, argv)], {**os.environ, 'PYTHONIOENCODING': 'cp1252'}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    return done.stderr


def test_a_run_without_workers_is_resumed_and_used(tmp_path, here, cli):
    run = [*TINY, '--train', '--num_workers=0', '--feature_net=classifier', f'--logdir={tmp_path / "运行"}']
    elsewhere(*run, '--total_steps=2', '--eval')
    assert 'at step 2' in elsewhere(*run, '--sample', '--nll', '--figure=progressive')
    assert cli(*TINY, '--train', f'--logdir={tmp_path / "whole"}')[0] == 0
    whole, parts = (load(tmp_path / name) for name in ('whole', '运行'))
    assert whole['step'] == 4 and not differences(whole['net_model'], parts['net_model'])
    assert len(np.load(tmp_path / '运行' / 'samples' / 'samples.npz')['arr_0']) == 4
    for name in ('eval.txt', 'nll.png', 'figures/progressive.png'):
        assert (tmp_path / '运行' / name).exists()


def test_spawned_workers_bring_the_same_batches(tmp_path, folder_of_images, cli):
    run = [*TINY, '--train', f'--dataset={folder_of_images}', '--num_workers=2']
    elsewhere(*run, f'--logdir={tmp_path / "run"}')
    assert cli(*run, f'--logdir={tmp_path / "plain"}')[0] == 0
    assert not differences(load(tmp_path / 'run')['net_model'], load(tmp_path / 'plain')['net_model'])
