"""If a loss or gradient is not finite on one rank, no rank makes the update, and the run ends in one line."""

import pytest
import torch
from conftest import TINY
from ranks import Ranks
from runs import load, one_line

FLAGS = [*TINY, '--train', '--total_steps=9', '--save_step=3', '--sample_step=0', '--logdir']


def spoil_the_loss():
    _spoil(lambda loss: loss * float('nan'))


def spoil_a_gradient():
    def spoiled(loss):
        loss.register_hook(lambda gradient: gradient * float('inf'))
        return loss

    _spoil(spoiled)


def _spoil(change):
    import train

    forward, count = train.MeanLoss.forward, iter(range(5))

    def spoiled(self, **batch):
        loss = forward(self, **batch)
        return loss if next(count, None) is not None else change(loss)

    train.MeanLoss.forward = spoiled


@pytest.mark.parametrize('defect', [spoil_the_loss, spoil_a_gradient])
@pytest.mark.parametrize('rank', [0, 1])
def test_a_nan_on_one_rank(tmp_path, rank, defect):
    ranks = Ranks(2, *FLAGS, tmp_path, log=tmp_path / 'log', before={rank: defect})
    assert ranks.status() == [1, 1], ranks.error()
    assert 'step 6: loss ' in one_line(ranks[0].error()) and 'the checkpoint is of step 3' in ranks[0].error()
    state = load(tmp_path)
    assert state['step'] == 3 and all(torch.isfinite(value).all() for value in state['net_model'].values())
