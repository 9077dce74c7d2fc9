"""The command line: flagfiles, and one clear line for a failure."""

import os
import re
from pathlib import Path

import pytest
from conftest import ROOT, TINY, spawn
from runs import config_of, load, one_line

import evaluate
import main
from run import checks

CONFIGS = sorted((ROOT / 'config').glob('*.txt'))
# All lines of w86763777/pytorch-ddpm's own flagfile.
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
    checks.check(config, training=True)
    assert path.read_text().startswith(f'# python main.py --flagfile config/{path.name} --train\n')


def test_cifar10_is_pytorch_ddpms(flagfile):
    theirs, ours = config_of(f'--flagfile={flagfile}'), config_of(f'--flagfile={ROOT}/config/CIFAR10.txt')
    assert os.path.normpath(theirs.fid_cache) == evaluate.statistics_path(ours)
    different = {'train', 'fid_cache', 'num_images'}  # the last is the default of --eval
    assert {key for key, value in vars(ours).items() if value != getattr(theirs, key)} == different


def test_the_command_line_replaces_the_flagfile_wherever_it_stands(flagfile):
    for argv in (
        ['--ch_mult=1', '--ch_mult=3', f'--flagfile={flagfile}', '--attn=', '--lr', '0.5'],
        ['--ch_mult=1,3', '--attn=', '--lr=0.5', '--flagfile', str(flagfile)],
    ):
        config = config_of(*argv)
        assert (config.ch_mult, config.attn, config.lr, config.warmup) == ([1, 3], [], 0.5, 5000)
    assert config_of(f'--flagfile={flagfile}').ch_mult == [1, 2, 2, 2]
    assert config_of(f'--flagfile={flagfile}', '--notrain').train is False


def test_a_later_flagfile_replaces_an_earlier_one(flagfile, tmp_path):
    (tmp_path / 'own.txt').write_text('--ch_mult=1\n--ch_mult=3\n--notrain\n')
    (tmp_path / 'naming.txt').write_text(f'--T=5\n--flagfile={flagfile}\n--ch_mult=1,3\n--notrain\n')
    for paths in ([flagfile, tmp_path / 'own.txt'], [tmp_path / 'naming.txt']):
        config = config_of(*(f'--flagfile={path}' for path in paths))
        assert (config.ch_mult, config.train, config.T, config.warmup) == ([1, 3], False, 1000, 5000)


@pytest.mark.parametrize(
    'content, said',
    [
        (b'PK\3\4\xff\xfe', 'own.txt cannot be read as text in UTF-8'),
        ('--T=5\n'.encode('utf-16'), 'own.txt cannot be read as text in UTF-8'),
        (b'--T=5\n--flagfile=own.txt\n', 'the flagfile own.txt names itself'),
        ('\ufeff# a comment\n\n// another\n--T=5\n'.encode(), 'nothing to do'),
    ],
)
def test_a_flagfile_is_text(tmp_path, cli, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'own.txt').write_bytes(content)
    status, _, error = cli('--flagfile=own.txt')
    assert status == 2 and said in one_line(error)


def test_a_name_that_is_not_in_utf_8_is_refused(tmp_path, cli):
    status, _, error = cli(*TINY, '--train', f'--logdir={tmp_path}/caf\udce9')
    assert status == 2 and one_line(error).endswith('caf? is not in UTF-8: give what it names another name')
    assert not list(tmp_path.iterdir())


def test_pytorch_ddpms_flagfile_trains(flagfile, tmp_path, cli):
    small = [flag for flag in TINY if 'fixed' not in flag]
    assert cli(f'--flagfile={flagfile}', *small, f'--logdir={tmp_path / "run"}')[0] == 0
    assert load(tmp_path / 'run')['step'] == 4


def test_a_saved_flagfile_says_how_and_not_what_to_do(tmp_path, cli):
    assert cli(*TINY, '--train', '--sample', f'--logdir={tmp_path}')[0] == 0
    saved = (tmp_path / 'flagfile.txt').read_text()
    assert '--dataset=digits' in saved
    for action in main.MODES:
        assert not re.search(f'^--(no)?{action}\\b', saved, re.MULTILINE), action
    assert config_of(f'--flagfile={tmp_path / "flagfile.txt"}', '--sample').train is False


@pytest.mark.parametrize('line', ['--train', '--train=true', '--figure=forward', '--nll\n--export\nsafetensors'])
def test_an_action_on_the_command_line_replaces_those_of_flagfiles(tmp_path, cli, capsys, line):
    (tmp_path / 'old.txt').write_text(f'{line}\n--noeval\n--total_steps=3\n')
    config = config_of(f'--flagfile={tmp_path / "old.txt"}', '--sample')
    said = capsys.readouterr().err
    assert config.sample and config.total_steps == 3
    assert not (config.train or config.figure or config.nll or config.export)
    names = ' '.join(f'--{name}' for name in re.findall('--([a-z]+)', line))
    assert said == f'main.py: {names} in {tmp_path / "old.txt"} is left out: the command line says what to do\n'


def test_an_action_of_a_flagfile_alone_is_done(tmp_path, capsys):
    (tmp_path / 'old.txt').write_text('--train\n--lr\n0.5\n')
    config = config_of(f'--flagfile={tmp_path / "old.txt"}', '--nosample', '--seed=3')
    assert config.train and config.lr == 0.5 and not capsys.readouterr().err
    assert config_of(f'--flagfile={tmp_path / "old.txt"}', '--lr=0.1').lr == 0.1


@pytest.mark.parametrize('word', ['-h', '--help'])
def test_help_is_grouped_as_the_flags_are(cli, word):
    status, out, error = cli('--train', word)
    assert (status, error) == (0, '')
    headings = re.findall('^([A-Z].*):$', out, re.MULTILINE)
    assert headings[:3] == ['What to do', 'Network', 'Diffusion'] and headings[-1] == 'Evaluation'
    assert set(re.findall(r'^  --(?:\[no\])?(\w+)', out, re.MULTILINE)) == set(main.own_flags())
    assert '--ch_mult=1,2,2,2 ' in out and 'unet context_unet point_mlp' in out and 'repeat this option' not in out
    assert max(map(len, out.splitlines())) <= 120


def test_a_flag_of_a_flagfile_that_contradicts_the_checkpoint(tmp_path, cli):
    assert cli(*TINY, '--train', f'--logdir={tmp_path / "run"}')[0] == 0
    (tmp_path / 'wide.txt').write_text('--ch=64\n')
    status, _, error = cli(f'--flagfile={tmp_path / "wide.txt"}', '--sample', f'--logdir={tmp_path / "run"}')
    line = one_line(error)
    assert status == 2 and f'--ch=64 in {tmp_path / "wide.txt"} (trained with 32)' in line
    assert '--logdir alone is enough' in line
    status, _, error = cli('--ch=64', '--sample', f'--logdir={tmp_path / "run"}')
    assert status == 2 and one_line(error).endswith('--ch=64 (trained with 32): leave the flag out')


def test_flags_are_checked_with_those_of_the_checkpoint(tmp_path, cli):
    assert cli(*TINY, '--train', '--T=2000', '--beta_T=0.02', f'--logdir={tmp_path}', '--total_steps=1')[0] == 0
    argv = '--sample', f'--logdir={tmp_path}', '--num_images=1', '--device=cpu'
    assert cli(*argv, '--timesteps=1999,0')[0] == 0
    status, _, error = cli(*argv, '--timesteps=2000,0')
    assert status == 2 and 'between 0 and T - 1 = 1999' in one_line(error)


# --- failures


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
    assert '--batch_size=2000 is more than the 1438 images' in fails(cli, '--train', logdir, '--batch_size=2000')
    assert not (tmp_path / 'run').exists()


def test_a_home_folder_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))  # on Windows
    config = config_of(*TINY, '--logdir=~/run', '--labels=a~b')
    assert config.logdir == os.path.join(str(tmp_path), 'run') and config.labels == 'a~b'


def test_nothing_to_sample_from(tmp_path, cli):
    assert f'no checkpoint at {tmp_path}/ckpt.pt' in fails(cli, '--sample', f'--logdir={tmp_path}')
    assert 'no checkpoint at a.pt' in fails(cli, '--sample', '--ckpt=a.pt')
    assert str(tmp_path) in fails(cli, '--sample', f'--ckpt={tmp_path}')


def test_a_failure_and_an_interruption_as_a_user_sees_them(tmp_path):
    process = spawn('--sample', f'--logdir={tmp_path}')
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, '') and one_line(error) == error.strip()
    assert Path(tmp_path).exists() and not list(Path(tmp_path).iterdir())
