"""SIGKILL at any stage of writing a checkpoint leaves the old or the new one complete, and a run resumes from it."""

import os
from functools import partial

import kills
import pytest
from conftest import TINY
from runs import Forked, load

# The stages in order, each with the step of the checkpoint that it leaves: 2 was saved before, 4 is being written. The
# first file to be replaced is flagfile.txt.
STAGES = [
    (partial(kills.on_call, 'torch.save', nth=2), 2),
    (partial(kills.halfway_through_a_write, 'torch.save', file_at=1, nth=2), 2),
    (partial(kills.on_call, 'torch.save', nth=2, before=False), 2),
    (partial(kills.on_call, 'run.checkpoint.os.replace', nth=3), 2),
    (partial(kills.on_call, 'run.checkpoint.os.replace', nth=3, before=False), 2),
    (partial(kills.on_call, 'run.checkpoint.os.replace', nth=4, before=False), 4),
    (partial(kills.on_call, 'run.checkpoint.save', nth=2, before=False), 4),
]


@pytest.mark.parametrize('kill, step', STAGES, ids=range(len(STAGES)))
def test_a_kill_while_saving(tmp_path, kill, step):
    logdir = tmp_path / 'run'
    argv = [*TINY, '--train', '--save_step=2', '--total_steps=6', f'--logdir={logdir}']
    assert Forked(*argv, log=tmp_path / 'log', before=kill).status() == -9
    assert load(logdir)['step'] == step
    resumed = Forked(*argv, log=tmp_path / 'log')
    assert resumed.status() == 0 and f'at step {step}' in resumed.error()
    assert load(logdir)['step'] == 6 and load(logdir, 'ckpt.prev.pt')['step'] == 4
    assert not [name for name in os.listdir(logdir) if name.endswith('.tmp')]
