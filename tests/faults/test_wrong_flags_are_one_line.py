"""A wrong flag or pair of flags gives one line that names it, and exit status 2, before anything is written."""

import pytest
import torch
from conftest import TINY
from runs import one_line

SIZES = '32x', '0', '32,48', 'x8', '8x0', '-8', '8x16x3', '', '8.5', '8 x 16', '8X16', '\N{SUPERSCRIPT TWO}'
USAGE = [
    *(
        (['--train', f'--img_size={size}'], 'a size is a number such as 32, or HEIGHTxWIDTH such as 32x48')
        for size in SIZES
    ),
    *((['--train', f'--{name}={10**30}'], name) for name in ('warmup', 'sample_size', 'ch_mult', 'img_size')),
    ([], 'nothing to do'),
    (['--train', 'extra'], 'unexpected argument extra'),
    (['--train', '--mean_type=noise'], 'value should be one of <epsilon|xstart|xprev|v>'),
    (['--train', '--schedule=cubic'], 'schedule'),
    (['--train', '--no_such_flag'], 'no_such_flag'),
    (['--train', '--flagfile=no/such.txt'], 'no/such.txt'),
    (['--train', '--flagfile=no/such.txt'], 'CELEBA64.txt CELEBAHQ256.txt CIFAR10.txt'),
    (['--train', '--learning_rate=1'], 'is it --lr?'),
    (['--train', '--epochs=1'], 'is it --total_steps'),
    (['--train', '--ema_decy=1'], 'is it --ema_decay?'),
    (['--train', '--t=1'], 'is it --T?'),
    (['--train', '--log_step=0'], 'log_step'),
    (['--train', '--keep_every=-1'], 'keep_every'),
    (['--train', '--flagfile'], 'flagfile'),
    (['--train', '--attn=4'], 'attn must name levels 0 to 0'),
    (['--train', '--attn=x'], 'attn'),
    (['--train', '--ch=48'], 'ch must be a multiple of 32'),
    (['--train', '--ch_mult='], 'ch_mult must be one or more'),
    (['--train', '--ch_mult=1,2,2', '--img_size=10'], 'img_size must be divisible by 4'),
    (['--train', '--T=0'], 'T'),
    (['--train', '--beta_1=0'], 'beta_1 must be in (0, 1]'),
    (['--train', '--beta_T=1.1'], 'beta_T must be in (0, 1]'),
    (['--train', '--schedule=jsd'], 'mean_type epsilon gives no x_0'),
    (['--train', '--eta=1.5'], 'eta'),
    (['--train', '--eta=-0.1'], 'eta'),
    (['--train', '--sample_steps=9'], 'between 1 and T = 8, not 9'),
    (['--train', '--batch_size=-1'], 'batch_size'),
    (['--train', '--img_size=0'], 'img_size'),
    (['--train', '--ch_mult=1,2,2', '--img_size=8x10'], 'divisible by 4, as 3 levels halve it 2 times, not 8x10'),
    (['--train', '--ch_mult=1,2,2', '--img_size=10x8'], 'not 10x8'),
    (['--train', '--net=context_unet', '--ch_mult=1,1,2', '--img_size=8x10'], 'not 8x10'),
    (['--train', '--fit=cover'], 'value should be one of <crop|pad|stretch>'),
    (['--sample', '--num_images=0'], 'num_images'),
    (['--train', '--grad_accum=3'], 'grad_accum 3 must divide batch_size 8'),
    (['--train', '--dropout=2'], 'dropout'),
    (['--train', '--net=transformer'], 'net'),
    (['--train', '--net=context_unet', '--ch_mult=1,1,2', '--img_size=10'], 'img_size must be divisible by 4'),
    (['--figure=spiral'], 'figure'),
    (['--train', '--seed=-1'], 'seed'),
    (['--train', '--lr=nan'], 'lr must be finite'),
    (['--train', '--grad_clip=inf'], 'grad_clip must be finite'),
    (['--train', '--beta_1=nan'], 'beta_1'),
    (['--train', '--loader_timeout=-1'], 'loader_timeout'),
    (['--train', '--batch_size=1.5'], '--batch_size=1.5: value should be a whole number'),
    (['--train', '--lr=x'], '--lr=x: value should be a number'),
    (['--train', '--total_steps='], 'total_steps'),
    (['--train', '--cond=maybe'], '--cond=maybe: value should be true or false'),
    (['--eval', '--feature_net=vgg'], 'feature_net'),
    (['--eval', '--fid_protocol=jax'], 'fid_protocol'),
    (['--train', '--keep_best=FID'], '--keep_best=FID needs --eval_step'),
    (['--train', '--eval_step=2', '--keep_best=fid'], '--keep_best=fid ranks no checkpoints: take one of IS '),
    (
        ['--train', '--eval_step=2', '--keep_best=Delta_T', '--metrics=authenticity'],
        'ranks no checkpoints: take one of',
    ),
    (
        ['--train', '--eval_step=2', '--keep_best=MIND'],
        '--keep_best=MIND is not computed: add --metrics=fid,is,kid,mind',
    ),
    (
        ['--train', '--eval_step=2', '--keep_best=FID', '--net=point_mlp', '--dataset=moons'],
        'points are scored by none of',
    ),
    (['--train', '--device=gpu'], '--device=gpu: no device of torch; here it is one of auto, cpu'),
    (['--train', '--device=cpu:x'], '--device=cpu:x'),
    (['--train', '--device=cuda:99'], 'no CUDA device'),
    pytest.param(
        ['--train', '--device=cuda'],
        'no CUDA device',
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device'),
    ),
]


@pytest.mark.parametrize('argv, phrase', USAGE, ids=lambda value: ' '.join(value) if isinstance(value, list) else None)
def test_wrong_usage_is_one_line_and_2(tmp_path, cli, argv, phrase):
    (tmp_path / 'tiny.txt').write_text('\n'.join(TINY))
    status, _, error = cli(f'--flagfile={tmp_path / "tiny.txt"}', f'--logdir={tmp_path / "run"}', *argv)
    assert status == 2 and phrase in one_line(error)
    assert not (tmp_path / 'run').exists()
