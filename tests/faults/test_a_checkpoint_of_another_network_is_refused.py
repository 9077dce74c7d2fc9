"""A checkpoint of another architecture, T, schedule or labels is refused by the name of the flag, and kept as it is."""

import pytest
import torch
from conftest import TINY
from runs import load, one_line

from run import checkpoint
from run.checkpoint import CheckpointError

OTHERS = [
    (['--ch=64'], '--ch=64 (trained with 32)'),
    (['--num_res_blocks=2'], '--num_res_blocks=2 (trained with 1)'),
    (['--attn=0'], '--attn=[0] (trained with [])'),
    (['--head_dim=8'], '--head_dim=8 (trained with 0)'),
    (['--arch=official'], '--arch=official (trained with pytorch_ddpm)'),
    (['--net=context_unet'], '--net=context_unet (trained with unet)'),
    (['--T=9'], '--T=9 (trained with 8)'),
    (['--schedule=cosine'], '--schedule=cosine (trained with linear)'),
    (['--beta_T=0.4'], '--beta_T=0.4 (trained with 0.5)'),
    (['--mean_type=v'], '--mean_type=v (trained with epsilon)'),
    (['--num_classes=11'], '--num_classes=11 (trained with 10)'),
]


@pytest.fixture(scope='module')
def logdir(tmp_path_factory):
    return tmp_path_factory.mktemp('run')


@pytest.fixture
def argv(logdir, cli):
    argv = [*TINY, '--cond', f'--logdir={logdir}']
    assert cli(*argv, '--train')[0] == 0
    return argv


@pytest.mark.parametrize('mode, expected', [('--train', 1), ('--sample', 2), ('--eval', 2)])
@pytest.mark.parametrize('other, phrase', OTHERS)
def test_another_network(argv, logdir, cli, mode, expected, other, phrase):
    before = (logdir / 'ckpt.pt').read_bytes()
    status, _, error = cli(*argv, mode, *other, '--total_steps=9')
    assert status == expected and phrase in one_line(error)
    assert (logdir / 'ckpt.pt').read_bytes() == before


def test_without_labels(argv, logdir, cli):
    status, _, error = cli(*argv, '--nocond', '--train', '--total_steps=9')
    assert status == 1 and '--num_classes=0 (trained with 10)' in one_line(error)


@pytest.mark.parametrize('labels', ['10', '-1', '3,x'])
def test_labels_that_it_does_not_have(argv, cli, labels):
    status, _, error = cli(*argv, '--sample', f'--labels={labels}')
    assert status == 2 and '--labels' in one_line(error)


def test_one_that_says_nothing_of_itself(argv, logdir, tmp_path, cli):
    state = load(logdir)
    del state['config']
    torch.save(state, tmp_path / 'ckpt.pt')
    status, _, error = cli(*argv, '--train', '--ch=64', f'--logdir={tmp_path}')
    assert status == 1 and 'another architecture' in error
    assert 'downblocks.0.block1.0.bias is (32,), not (64,)' in one_line(error)


def test_one_of_before_there_was_head_dim(argv, logdir, tmp_path, cli):
    state = load(logdir)
    del state['config']['head_dim']
    torch.save(state, tmp_path / 'ckpt.pt')
    for mode, expected in (('--train', 1), ('--sample', 2)):
        status, _, error = cli(*argv, mode, '--head_dim=8', '--total_steps=9', f'--logdir={tmp_path}')
        assert status == expected and '--head_dim=8 (trained with 0)' in one_line(error)
    assert cli(*argv, '--sample', f'--logdir={tmp_path}')[0] == 0


def test_every_key_and_shape_counts():
    net = torch.nn.Linear(2, 3)
    weights = {'weight': torch.zeros(3, 4), 'scale': torch.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_weights(net, weights, 'a.pt')
    for phrase in ('a.pt', 'bias (3,) is missing', 'scale (1,) is not of this network', 'weight is (3, 4), not (3, 2)'):
        assert phrase in str(error.value)


@pytest.mark.parametrize(
    'change',
    [
        lambda state: state.pop('net_model'),
        lambda state: state.pop('sched'),
        lambda state: state.update(optim={'state': {}, 'param_groups': []}),
        lambda state: state.update(ema_model=[1]),
        lambda state: state.update(x_T=torch.zeros(4, 3, 8, 8)),
        lambda state: state.update(config=3),
        lambda state: state['sched'].update(last_epoch=-5),
        lambda state: state['sched'].update(last_epoch='4'),
    ],
)
def test_something_else_of_that_name(argv, logdir, tmp_path, cli, change):
    state = load(logdir)
    change(state)
    torch.save(state, tmp_path / 'ckpt.pt')
    status, _, error = cli(*argv, '--train', f'--logdir={tmp_path}')
    assert status == 1 and f'{tmp_path}/ckpt.pt is no checkpoint of this program' in one_line(error)
