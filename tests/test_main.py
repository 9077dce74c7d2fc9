"""The command line: flagfiles, and one clear line for everything that can be wrong."""

import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, spawn
from test_train import config_of, load

import build
import checkpoint
import evaluate

CONFIGS = sorted((ROOT / 'config').glob('*.txt'))
# What w86763777/pytorch-ddpm's own flagfile says, each of its lines.
PYTORCH_DDPM = (
    'T=1000 attn=1 batch_size=128 beta_1=0.0001 beta_T=0.02 ch=128 ch_mult=1 ch_mult=2 ch_mult=2 ch_mult=2 dropout=0.1 '
    'ema_decay=0.9999 noeval eval_step=0 fid_cache=./stats/cifar10.train.npz nofid_use_torch grad_clip=1.0 img_size=32 '
    'logdir=./logs/DDPM_CIFAR10_EPS lr=0.0002 mean_type=epsilon num_images=50000 num_res_blocks=2 num_workers=4 '
    'noparallel sample_size=64 sample_step=1000 save_step=5000 total_steps=800000 train var_type=fixedlarge warmup=5000'
)


@pytest.fixture
def flagfile(tmp_path):
    path = tmp_path / 'flags.txt'
    path.write_text(''.join(f'--{line}\n' for line in PYTORCH_DDPM.split(' ')))
    return path


# --- flags and flagfiles


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_each_config_describes_a_run_and_opens_with_its_command(path):
    config = config_of(f'--flagfile={path}')
    assert not (config.train or config.sample or config.eval)
    build.check(config)
    assert path.read_text().startswith(f'# python main.py --flagfile config/{path.name} --train\n')


def test_cifar10_is_pytorch_ddpms(flagfile):
    theirs, ours = config_of(f'--flagfile={flagfile}'), config_of(f'--flagfile={ROOT}/config/CIFAR10.txt')
    assert os.path.normpath(theirs.fid_cache) == evaluate.reference_path(ours)
    assert {key for key, value in vars(ours).items() if value != getattr(theirs, key)} == {'train', 'fid_cache'}


def test_the_command_line_replaces_the_flagfile_wherever_it_stands(flagfile):
    for argv in (
        ['--ch_mult=1', '--ch_mult=3', f'--flagfile={flagfile}', '--attn=', '--lr', '0.5'],
        ['--ch_mult=1,3', '--attn=', '--lr=0.5', '--flagfile', str(flagfile)],
    ):
        config = config_of(*argv)
        assert (config.ch_mult, config.attn, config.lr, config.warmup) == ([1, 3], [], 0.5, 5000)
    assert config_of(f'--flagfile={flagfile}').ch_mult == [1, 2, 2, 2]
    assert config_of(f'--flagfile={flagfile}', '--notrain').train is False


def test_pytorch_ddpms_flagfile_trains(flagfile, tmp_path, cli):
    small = [flag for flag in TINY if 'fixed' not in flag]
    assert cli(f'--flagfile={flagfile}', *small, f'--logdir={tmp_path / "run"}')[0] == 0
    assert load(tmp_path / 'run')['step'] == 4


# --- bad input: (flags, exit status, phrase)

USAGE = [
    ([], 'nothing to do'),
    (['--train', 'extra'], 'unexpected argument extra'),
    (['--train', '--mean_type=noise'], 'value should be one of <epsilon|xstart|xprev|v>'),
    (['--train', '--schedule=cubic'], 'schedule'),
    (['--train', '--no_such_flag'], 'no_such_flag'),
    (['--train', '--flagfile=no/such.txt'], 'no/such.txt'),
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
    (['--train', '--sample_steps=8', '--spacing=quad'], 'distinct steps'),
    (['--train', '--batch_size=-1'], 'batch_size'),
    (['--train', '--img_size=0'], 'img_size'),
    (['--sample', '--num_images=0'], 'num_images'),
    (['--train', '--grad_accum=3'], 'grad_accum 3 must divide batch_size 8'),
    (['--train', '--dropout=2'], 'dropout'),
    (['--train', '--net=transformer'], 'net'),
    (['--train', '--net=context_unet', '--ch_mult=1,1,2', '--img_size=10'], 'img_size must be divisible by 4'),
    (['--figure=spiral'], 'figure'),
    (['--train', '--seed=-1'], 'seed'),
    (['--train', '--parallel'], '--parallel is not available yet'),
    (['--eval', '--feature_net=vgg'], 'feature_net'),
    (['--eval', '--fid_protocol=jax'], 'fid_protocol'),
    pytest.param(
        ['--train', '--device=cuda'],
        'no CUDA device',
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device'),
    ),
]


def one_line(error):
    (line,) = error.strip().splitlines()[-1:]
    assert line.startswith('main.py: error: ') and 'Traceback' not in error
    return line


@pytest.mark.parametrize('argv, phrase', USAGE, ids=lambda value: ' '.join(value) if isinstance(value, list) else None)
def test_wrong_usage_is_one_line_and_2(tmp_path, cli, argv, phrase):
    (tmp_path / 'tiny.txt').write_text('\n'.join(TINY))
    status, _, error = cli(f'--flagfile={tmp_path / "tiny.txt"}', f'--logdir={tmp_path / "run"}', *argv)
    assert status == 2 and phrase in one_line(error)
    assert not (tmp_path / 'run').exists()


@pytest.fixture
def trained(tmp_path, cli):
    assert cli(*TINY, '--train', f'--logdir={tmp_path / "run"}')[0] == 0
    return tmp_path / 'run'


def fails(cli, *argv):
    status, _, error = cli(*TINY, *argv)
    assert status == 1
    return one_line(error)


def test_data_that_cannot_be_read(tmp_path, cli):
    logdir = f'--logdir={tmp_path / "run"}'
    assert 'no/such' in fails(cli, '--train', logdir, '--dataset=no/such')
    (tmp_path / 'empty').mkdir()
    assert f'no images in {tmp_path / "empty"}' in fails(cli, '--train', logdir, f'--dataset={tmp_path / "empty"}')
    (tmp_path / 'empty' / 'a.png').write_bytes(b'no image')
    assert 'a.png cannot be decoded' in fails(cli, '--train', logdir, f'--dataset={tmp_path / "empty"}')
    assert 'batch_size 2000 is more than' in fails(cli, '--train', logdir, '--batch_size=2000')
    assert not (tmp_path / 'run' / 'ckpt.pt').exists()


def test_a_folder_that_cannot_be_written(tmp_path, cli):
    (tmp_path / 'file').write_text('')
    assert 'file' in fails(cli, '--train', f'--logdir={tmp_path / "file" / "run"}')
    assert '/proc/run' in fails(cli, '--train', '--logdir=/proc/run')


def test_nothing_to_sample_from(tmp_path, cli):
    assert f'no checkpoint at {tmp_path}/ckpt.pt' in fails(cli, '--sample', f'--logdir={tmp_path}')
    assert 'no checkpoint at a.pt' in fails(cli, '--sample', '--ckpt=a.pt')
    assert str(tmp_path) in fails(cli, '--sample', f'--ckpt={tmp_path}')


def test_a_checkpoint_of_another_network_is_not_resumed(trained, cli):
    line = fails(cli, '--train', f'--logdir={trained}', '--ch=64', '--T=9', '--total_steps=9')
    assert '--ch=64 (trained with 32)' in line and '--T=9 (trained with 8)' in line
    state = load(trained)
    del state['config']
    torch.save(state, trained / 'ckpt.pt')
    line = fails(cli, '--train', f'--logdir={trained}', '--ch=64')
    assert 'another architecture' in line and 'downblocks.0.block1.0.bias is (32,), not (64,)' in line


def test_damaged_checkpoints(trained, cli):
    assert cli(*TINY, '--train', f'--logdir={trained}', '--total_steps=6')[0] == 0
    (trained / 'ckpt.pt').write_bytes(b'')
    status, _, error = cli(*TINY, '--train', f'--logdir={trained}', '--total_steps=6')
    assert status == 0 and 'WARNING' in error and 'at step 4' in error and load(trained)['step'] == 6
    (trained / 'ckpt.pt').write_bytes(b'')
    (trained / 'ckpt.prev.pt').write_bytes(b'')
    assert 'ckpt.prev.pt is damaged' in fails(cli, '--train', f'--logdir={trained}')
    assert (trained / 'ckpt.pt').read_bytes() == (trained / 'ckpt.prev.pt').read_bytes() == b''


def test_a_folder_in_use(trained, cli):
    with checkpoint.exclusive(str(trained)):
        before = (trained / 'flagfile.txt').read_bytes()
        assert 'is training in' in fails(cli, '--train', f'--logdir={trained}', '--total_steps=9')
        assert (trained / 'flagfile.txt').read_bytes() == before
        assert cli('--sample', '--num_images=1', f'--logdir={trained}')[0] == 0  # looking is allowed


def test_a_failure_and_an_interruption_as_a_user_sees_them(tmp_path):
    process = spawn('--sample', f'--logdir={tmp_path}')
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, '') and one_line(error) == error.strip()
    assert Path(tmp_path).exists() and not list(Path(tmp_path).iterdir())


def test_an_interrupted_sampling_exits_130(trained):
    process = spawn('--sample', f'--logdir={trained}', '--num_images=1000000', '--sample_batch_size=1')
    for line in iter(lambda: process.stderr.read(1), ''):
        if line == '%':  # of the progress bar
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and 'Traceback' not in error
