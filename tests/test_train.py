"""The training loop: its semantics, and that no interruption changes what comes out."""

import copy
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from absl.testing import flagsaver
from conftest import ROOT, TINY, spawn
from PIL import Image
from tensorboardX.proto import event_pb2

import build
import checkpoint
import dataset
import main
import sample
import train


def config_of(*argv):
    """The config that main.py would make of these flags."""
    with flagsaver.flagsaver():
        main.parse_flags(['main.py', *map(str, argv)])
        config, _ = main.configuration()
        config.channels = 1
        return config


def load(logdir, name='ckpt.pt'):
    return checkpoint.load(str(Path(logdir) / name))


def differences(a, b, where=''):
    """Paths at which two nests of tensors and values differ in a single bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [where]
        return [path for key in a for path in differences(a[key], b[key], f'{where}/{key}')]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [where]
        return [path for i, pair in enumerate(zip(a, b, strict=True)) for path in differences(*pair, f'{where}/{i}')]
    return [] if a == b else [where]


def without_logdir(state):
    return {**state, 'config': {key: value for key, value in state['config'].items() if key != 'logdir'}}


def scalars(logdir, tag):
    """step -> value, the last one written, from TensorBoard's files; a file cut off by a kill ends where it was cut."""
    found = {}
    for path in sorted(Path(logdir).glob('events.*'), key=lambda path: path.stat().st_mtime):
        content, at = path.read_bytes(), 0
        while at + 12 <= len(content):
            (length,) = struct.unpack_from('<Q', content, at)
            if at + 16 + length > len(content):
                break
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            for value in event.summary.value:
                if value.tag == tag:
                    found[event.step] = value.simple_value
            at += 16 + length
    return found


# --- resuming


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_twenty_kills_change_no_bit(tmp_path, precision):
    argv = [*TINY, '--train', '--total_steps=60', '--save_step=2', '--dropout=0.1', f'--precision={precision}']
    argv += ['--lr_schedule=cosine']
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    script = [sys.executable, str(ROOT / 'tests' / 'kills.py')]
    for name, kills in (('whole', 0), ('killed', 20)):
        done = subprocess.run(
            [*script, str(kills), *argv, f'--logdir={tmp_path / name}'], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) == kills
    whole, killed = (load(tmp_path / name) for name in ('whole', 'killed'))
    assert whole['step'] == 60
    assert differences(without_logdir(whole), without_logdir(killed)) == []
    losses = scalars(tmp_path / 'whole', 'loss')
    assert list(losses) == list(range(1, 61))
    assert scalars(tmp_path / 'killed', 'loss') == losses


@pytest.mark.parametrize('streamed', [False, True])
def test_a_run_in_two_parts_equals_a_whole_one(tmp_path, cli, folder_of_images, monkeypatch, streamed):
    if streamed:
        monkeypatch.setattr(dataset, 'RESIDENT_BYTES', 0)
    argv = [*TINY, '--train', f'--dataset={folder_of_images}', '--num_workers=1', '--grad_accum=2', '--dropout=0.2']
    assert cli(*argv, '--total_steps=6', f'--logdir={tmp_path / "whole"}')[0] == 0
    assert cli(*argv, '--total_steps=3', f'--logdir={tmp_path / "parts"}')[0] == 0
    assert load(tmp_path / 'parts')['step'] == 3
    status, _, error = cli(*argv, '--total_steps=6', f'--logdir={tmp_path / "parts"}')
    assert status == 0 and 'resuming' in error and 'at step 3' in error
    assert differences(without_logdir(load(tmp_path / 'whole')), without_logdir(load(tmp_path / 'parts'))) == []


def test_its_flagfile_repeats_the_run(tmp_path, cli):
    assert cli(*TINY, '--train', f'--logdir={tmp_path / "a"}', '--seed=3', '--norandom_flip')[0] == 0
    assert cli(f'--flagfile={tmp_path / "a" / "flagfile.txt"}', f'--logdir={tmp_path / "b"}')[0] == 0
    a, b = (without_logdir(load(tmp_path / name)) for name in 'ab')
    assert differences(a, b) == [] and a['config']['attn'] == []


def test_pytorch_ddpms_own_checkpoint_is_resumed(tmp_path, cli):
    """It has no config, numbers the last step from 0 and knows neither fused Adam nor newer options of it."""
    assert cli(*TINY, '--train', f'--logdir={tmp_path / "a"}', '--total_steps=6')[0] == 0
    assert cli(*TINY, '--train', f'--logdir={tmp_path / "b"}', '--total_steps=4')[0] == 0
    state = load(tmp_path / 'b')
    del state['config']
    state['step'] -= 1
    for group in state['optim']['param_groups']:
        for key in ('fused', 'foreach', 'capturable', 'differentiable', 'maximize', 'decoupled_weight_decay'):
            del group[key]
    torch.save(state, tmp_path / 'b' / 'ckpt.pt')
    assert cli(*TINY, '--train', f'--logdir={tmp_path / "b"}', '--total_steps=6')[0] == 0
    a, b = (without_logdir(load(tmp_path / name)) for name in 'ab')
    assert a['step'] == b['step'] == 6 and differences(a['net_model'], b['net_model']) == []
    assert differences(a['optim']['state'], b['optim']['state']) == []


def test_a_finished_run_is_left_alone(tmp_path, cli):
    assert cli(*TINY, '--train', f'--logdir={tmp_path}')[0] == 0
    before = (tmp_path / 'ckpt.pt').read_bytes()
    status, _, error = cli(*TINY, '--train', f'--logdir={tmp_path}')
    assert status == 0 and 'at step 4 of 4: raise --total_steps' in error
    assert (tmp_path / 'ckpt.pt').read_bytes() == before


@pytest.mark.parametrize('signum, status', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(tmp_path, signum, status):
    process = spawn(*TINY, '--train', f'--logdir={tmp_path}', '--total_steps=1000000', '--save_step=10')
    deadline = time.monotonic() + 60
    while not (tmp_path / 'ckpt.pt').exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signum)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status and 'Traceback' not in error
    assert load(tmp_path)['step'] >= 10 and max(scalars(tmp_path, 'loss')) == load(tmp_path)['step']


def test_a_second_signal_ends_at_once(monkeypatch):
    ended = []
    monkeypatch.setattr(os, '_exit', ended.append)
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        interrupted = main.Interruption()
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted() and not ended
        os.kill(os.getpid(), signal.SIGINT)
        assert ended == [130]
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


# --- a step


def test_one_step_is_pytorch_ddpms(tmp_path):
    """Against the loop written out: clip, Adam, warm-up from 0, EMA of the trained parameters."""
    config = config_of(*TINY, f'--logdir={tmp_path}', '--ema_decay=0.9', '--grad_clip=0.05', '--warmup=4', '--lr=0.01')
    run = train.Run(config)
    net, ema = copy.deepcopy(run.net), copy.deepcopy(run.net)
    trainer = build.trainer(config, net)
    optim = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.01, foreach=False, fused=False)
    x_0 = torch.randn(8, 1, 8, 8)
    for step in range(6):
        torch.manual_seed(step)
        loss, norm = run.update(x_0)
        torch.manual_seed(step)
        for group in optim.param_groups:
            group['lr'] = 0.01 * min(step, 4) / 4
        optim.zero_grad()
        expected_loss = trainer(x_0).mean()
        expected_loss.backward()
        trained = [p for p in net.parameters() if p.requires_grad]
        expected_norm = torch.cat([p.grad.flatten() for p in trained]).norm()
        for p in trained:
            p.grad *= min(1.0, 0.05 / (expected_norm + 1e-6))
        optim.step()
        for e, p in zip(ema.parameters(), net.parameters(), strict=True):
            e.data = 0.9 * e.data + 0.1 * p.data if p.requires_grad else e.data
        assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
        assert norm.item() == pytest.approx(expected_norm.item(), rel=1e-4)
    for ours, expected in ((run.net, net), (run.ema, ema)):
        for key, value in ours.state_dict().items():
            torch.testing.assert_close(value, expected.state_dict()[key], atol=1e-4, rtol=1e-3)  # a hundredth of lr
    assert not run.ema.training and run.net.training


@pytest.mark.parametrize('mean_type', ['epsilon', 'xstart', 'xprev', 'v'])
def test_micro_batches_give_the_gradient_of_the_whole(tmp_path, mean_type):
    gradients = []
    for parts in (1, 4):
        config = config_of(*TINY, f'--logdir={tmp_path}', f'--grad_accum={parts}', f'--mean_type={mean_type}')
        run = train.Run(config)
        torch.manual_seed(0)
        run.update(torch.linspace(-1, 1, 8 * 64).view(8, 1, 8, 8))
        gradients.append(torch.cat([p.grad.flatten() for p in run.trained]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_learning_rate():
    config = SimpleNamespace(warmup=10, total_steps=110, lr_schedule='constant')
    assert [train.lr_factor(config, step) for step in (0, 5, 10, 109)] == [0, 0.5, 1, 1]
    config.lr_schedule = 'cosine'
    assert [train.lr_factor(config, step) for step in (0, 5, 10, 60, 110)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    config.warmup = 0
    assert train.lr_factor(config, 0) == 1


def test_no_update_is_made_with_a_gradient_that_is_not_finite(tmp_path):
    run = train.Run(config_of(*TINY, f'--logdir={tmp_path}', '--warmup=0'))
    run.update(torch.zeros(8, 1, 8, 8))
    before = copy.deepcopy(run.net.state_dict()), copy.deepcopy(run.optim.state_dict()['state'])
    run.update(torch.full((8, 1, 8, 8), torch.nan))
    run.update(torch.zeros(8, 1, 8, 8))  # nor with any after it
    assert differences(before[0], run.net.state_dict()) == []
    assert differences(before[1], run.optim.state_dict()['state']) == []


def test_a_loss_that_is_not_finite_ends_the_run_and_reaches_no_checkpoint(tmp_path, cli):
    argv = [*TINY, '--train', f'--logdir={tmp_path}', '--save_step=1', '--total_steps=50', '--lr=1e30', '--warmup=0']
    status, _, error = cli(*argv)
    assert status == 1 and 'Traceback' not in error
    step = load(tmp_path)['step']
    assert f'main.py: error: step {step + 1}: loss' in error and f'the checkpoint is of step {step}' in error
    for part in ('net_model', 'ema_model'):
        assert all(value.isfinite().all() for value in load(tmp_path)[part].values())


# --- what a run leaves


def test_what_a_run_writes(tmp_path, cli):
    argv = [*TINY, '--train', f'--logdir={tmp_path}', '--total_steps=6', '--sample_step=3', '--save_step=4']
    status, _, error = cli(*argv)
    assert status == 0 and '6/6' in error and 'loss=' in error and 'lr=' in error and 'img_s=' in error
    state = load(tmp_path)
    assert set(state) == {'net_model', 'ema_model', 'optim', 'sched', 'step', 'x_T', 'config'}
    assert state['step'] == state['sched']['last_epoch'] == 6 and load(tmp_path, 'ckpt.prev.pt')['step'] == 4
    assert sorted(os.listdir(tmp_path / 'sample')) == ['3.png', '6.png']
    for tag in ('loss', 'lr', 'grad_norm', 'img_per_sec'):
        assert list(scalars(tmp_path, tag)) == list(range(1, 7)), tag
    assert scalars(tmp_path, 'lr')[1] == 0 and scalars(tmp_path, 'lr')[3] == pytest.approx(2e-4)
    assert list(scalars(tmp_path, 'real_sample')) == [0] and list(scalars(tmp_path, 'sample')) == [3, 6]


def test_previews_are_of_the_ema_network_in_eval_mode_from_the_fixed_noise(tmp_path):
    config = config_of(*TINY, f'--logdir={tmp_path}', '--dropout=0.5')
    run = train.Run(config)
    for _ in range(3):
        run.update(torch.randn(8, 1, 8, 8))
    noise = sample.Noise(build.derive_seed('preview', 0), range(4), (1, 8, 8), run.device)
    expected = build.sampler(config, copy.deepcopy(run.ema).eval())(run.x_T, noise=noise)
    images = run.preview(lambda: False)
    assert torch.equal(images, expected) and torch.equal(images, run.preview(lambda: False))
    assert run.preview(lambda: True) is None


def test_a_full_disk_ends_the_run_with_one_line_and_the_old_checkpoint(tmp_path):
    def limit():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    first = spawn(*TINY, '--train', f'--logdir={tmp_path}', '--total_steps=2')
    assert first.wait(60) == 0
    before = (tmp_path / 'ckpt.pt').read_bytes()
    second = spawn(*TINY, '--train', f'--logdir={tmp_path}', '--total_steps=4', preexec_fn=limit)
    _, error = second.communicate(timeout=60)
    assert second.returncode == 1 and 'Traceback' not in error
    assert error.strip().splitlines()[-1].startswith(f'main.py: error: cannot write {tmp_path}/ckpt.pt')
    assert (tmp_path / 'ckpt.pt').read_bytes() == before
    assert not (tmp_path / 'ckpt.pt.tmp').exists()


def test_colour_previews(tmp_path, cli, folder_of_images):
    argv = [*TINY, '--train', f'--dataset={folder_of_images}', f'--logdir={tmp_path / "run"}', '--sample_step=4']
    assert cli(*argv)[0] == 0
    picture = np.asarray(Image.open(tmp_path / 'run' / 'sample' / '4.png'))
    assert picture.ndim == 3 and picture.std() > 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_training_on_a_gpu_resumes(tmp_path, cli):
    argv = [*TINY, '--train', '--device=cuda', '--precision=auto', f'--logdir={tmp_path}']
    assert cli(*argv)[0] == 0 and cli(*argv, '--total_steps=8')[0] == 0
    assert load(tmp_path)['step'] == 8
