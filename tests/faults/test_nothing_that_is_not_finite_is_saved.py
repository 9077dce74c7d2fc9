"""A loss or gradient that is NaN ends the run with the step's number. The update is neither made nor saved.

No image is made of NaN either.
"""

import copy

import pytest
import torch
from conftest import TINY
from runs import config_of, differences, load, one_line

import train


@pytest.mark.parametrize('what', ['loss', 'gradient'])
def test_the_run_ends(tmp_path, cli, monkeypatch, what):
    whole, calls = train.MeanLoss.forward, iter(range(99))

    def broken(mean_loss, **batch):
        loss = whole(mean_loss, **batch)
        if next(calls) != 1:  # in a run that resumes at step 4
            return loss
        if what == 'loss':
            return loss * torch.nan
        loss.register_hook(lambda gradient: gradient * torch.nan)
        return loss

    argv = [*TINY, '--train', f'--logdir={tmp_path}', '--save_step=2', '--total_steps=50']
    assert cli(*argv, '--total_steps=4')[0] == 0
    before = (tmp_path / 'ckpt.pt').read_bytes()
    monkeypatch.setattr(train.MeanLoss, 'forward', broken)
    status, _, error = cli(*argv)
    line = one_line(error)
    assert (
        status == 1 and 'step 6: loss' in line and 'the checkpoint is of step 4' in line and 'try a lower --lr' in line
    )
    assert (f'{what} nan' if what == 'loss' else 'gradient norm nan') in line
    assert (tmp_path / 'ckpt.pt').read_bytes() == before
    monkeypatch.undo()
    assert cli(*argv, '--total_steps=8')[0] == 0 and load(tmp_path)['step'] == 8


def test_what_it_advises_without_a_checkpoint(tmp_path, cli, monkeypatch):
    whole = train.MeanLoss.forward
    monkeypatch.setattr(train.MeanLoss, 'forward', lambda mean_loss, **batch: whole(mean_loss, **batch) * torch.nan)
    line = one_line(cli(*TINY, '--train', f'--logdir={tmp_path}')[2])
    assert 'there is no checkpoint yet; try a lower --lr or a lower --grad_clip' in line
    assert line.endswith('--grad_clip')  # no --precision=fp32: it is float32 already
    line = one_line(cli(*TINY, '--train', f'--logdir={tmp_path}', '--grad_clip=0', '--precision=bf16')[2])
    assert line.endswith('try a lower --lr, --grad_clip=1 or --precision=fp32')


def test_no_update_is_made(tmp_path):
    run = train.Run(config_of(*TINY, f'--logdir={tmp_path}', '--warmup=0'))
    run.update(torch.zeros(8, 1, 8, 8))
    before = copy.deepcopy([run.net.state_dict(), run.optim.state_dict()['state']])
    run.update(torch.full((8, 1, 8, 8), torch.nan))
    run.update(torch.zeros(8, 1, 8, 8))  # no later batch makes an update either
    assert differences(before, [run.net.state_dict(), run.optim.state_dict()['state']]) == []


@pytest.mark.parametrize('kind', [[], ['--dataset=moons', '--net=point_mlp']])
def test_no_image_is_made_of_it(tmp_path, cli, kind):
    run, out = tmp_path / 'run', tmp_path / 'out'
    assert cli(*TINY, '--train', '--cond', *kind, f'--logdir={run}')[0] == 0
    for verb in ('--sample', *['--figure=progressive'] * (not kind)):
        status, _, error = cli(verb, f'--logdir={run}', f'--out={out}', '--guidance=1e39')
        assert status == 1 and 'is not finite: try --precision=fp32, or --guidance' in one_line(error)
        assert not [path.name for path in out.glob('*') if path.name != 'samples.json']
