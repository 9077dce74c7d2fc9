"""The training loop: what a step does, and that no interruption changes the result."""

import copy
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from runs import config_of, differences, load, scalars, without_logdir

import train
from dataset import loader
from draw.inference import Inference
from draw.noise import Noise, derive_seed
from run import build, checkpoint

# --- resuming


@pytest.mark.parametrize('streamed', [False, True])
def test_a_run_in_two_parts_equals_a_whole_one(tmp_path, cli, folder_of_images, monkeypatch, streamed):
    if streamed:
        monkeypatch.setattr(loader, 'RESIDENT_BYTES', 0)
    argv = [*TINY, '--train', f'--dataset={folder_of_images}', '--num_workers=1', '--grad_accum=2', '--dropout=0.2']
    assert cli(*argv, '--total_steps=6', f'--logdir={tmp_path / "whole"}')[0] == 0
    assert cli(*argv, '--total_steps=3', f'--logdir={tmp_path / "parts"}')[0] == 0
    assert load(tmp_path / 'parts')['step'] == 3
    status, _, error = cli(*argv, '--total_steps=6', f'--logdir={tmp_path / "parts"}')
    assert status == 0 and 'resuming' in error and 'at step 3' in error
    assert differences(without_logdir(load(tmp_path / 'whole')), without_logdir(load(tmp_path / 'parts'))) == []


def test_a_resumed_run_draws_as_many_previews_as_it_is_told(tmp_path, cli):
    noise = []
    for n, total in ((4, 1), (2, 2), (6, 3)):
        argv = f'--logdir={tmp_path}', f'--sample_size={n}', f'--total_steps={total}', '--sample_step=1'
        assert cli(*TINY, '--train', *argv)[0] == 0
        noise.append(load(tmp_path)['x_T'])
    assert [len(x_T) for x_T in noise] == [4, 2, 6]
    assert torch.equal(noise[1], noise[0][:2]) and torch.equal(noise[2][:2], noise[0][:2])
    sizes = [Image.open(tmp_path / 'sample' / f'{step}.png').size for step in (1, 2, 3)]
    assert len(set(sizes)) == 3


def test_a_run_that_goes_on_with_another_data_set_says_so(tmp_path, cli, folder_of_images):
    argv = [*TINY, '--train', '--channels=1', f'--logdir={tmp_path / "run"}']
    assert cli(*argv)[0] == 0
    said = f'ckpt.pt was trained on --dataset=digits and goes on with {folder_of_images}'
    for steps, count in ((6, 1), (8, 0)):
        status, _, error = cli(*argv, f'--dataset={folder_of_images}', f'--total_steps={steps}')
        assert status == 0 and error.count(said) == count


def test_its_flagfile_repeats_the_run(tmp_path, cli):
    assert cli(*TINY, '--train', f'--logdir={tmp_path / "a"}', '--seed=3', '--norandom_flip')[0] == 0
    assert cli(f'--flagfile={tmp_path / "a" / "flagfile.txt"}', '--train', f'--logdir={tmp_path / "b"}')[0] == 0
    a, b = (without_logdir(load(tmp_path / name)) for name in 'ab')
    assert differences(a, b) == [] and a['config']['attn'] == []


def test_an_import_does_not_begin_over_the_checkpoint_before(tmp_path):
    checkpoint.save(str(tmp_path / 'ckpt.prev.pt'), {'step': 1})
    with pytest.raises(FileExistsError, match='holds a checkpoint already: choose another --logdir'):
        train.begin(config_of(*TINY, f'--logdir={tmp_path}'), *[train.Run(config_of(*TINY)).net.state_dict()] * 2)


# --- a step


def test_one_step_is_pytorch_ddpms(tmp_path):
    """Compare with the loop written out: clip, Adam, warm-up from 0, EMA of the trained parameters."""
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


# --- what a run leaves


def test_what_a_run_writes(tmp_path, cli):
    argv = [*TINY, '--train', f'--logdir={tmp_path}', '--total_steps=6', '--sample_step=3', '--save_step=4']
    status, out, error = cli(*argv)
    assert out == f'trained: {tmp_path}/ckpt.pt holds step 6 of 6; next: python main.py --sample --logdir={tmp_path}\n'
    assert status == 0 and '6/6' in error and 'loss=' in error and 'lr=' in error and 'img_s=' in error
    state = load(tmp_path)
    assert set(state) == {'net_model', 'ema_model', 'optim', 'sched', 'step', 'x_T', 'config', 'ranks'}
    assert state['step'] == state['sched']['last_epoch'] == 6 and load(tmp_path, 'ckpt.prev.pt')['step'] == 4
    assert sorted(os.listdir(tmp_path / 'sample')) == ['3.png', '6.png']
    assert '\r' not in error and 'tensorboard --logdir=' in error and '0.16 M parameters on cpu, float32' in error
    for tag in ('loss', 'loss_raw', 'lr', 'grad_norm', 'img_per_sec'):
        assert list(scalars(tmp_path, tag)) == list(range(1, 7)), tag
    assert scalars(tmp_path, 'lr')[1] == 0 and scalars(tmp_path, 'lr')[3] == pytest.approx(2e-4)
    assert list(scalars(tmp_path, 'real_sample')) == [0] and list(scalars(tmp_path, 'sample')) == [3, 6]


def test_numbered_checkpoints_stay(tmp_path, cli):
    argv = [*TINY, '--train', f'--logdir={tmp_path}', '--save_step=3', '--keep_every=4', '--total_steps=9']
    assert cli(*argv)[0] == 0
    assert sorted(path.name for path in tmp_path.glob('*.pt*')) == [
        'ckpt-4.pt', 'ckpt-8.pt', 'ckpt.prev.pt', 'ckpt.pt',
    ]  # fmt: skip
    assert [load(tmp_path, f'ckpt-{step}.pt')['step'] for step in (4, 8)] == [4, 8]
    status, out, _ = cli('--sample', f'--ckpt={tmp_path / "ckpt-4.pt"}', '--num_images=1')
    assert status == 0 and f'1 images in {tmp_path}/samples' in out


def test_numbered_checkpoints_are_copies_where_there_are_no_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError('no links here')

    monkeypatch.setattr(os, 'link', refuse)
    checkpoint.save(str(tmp_path / 'ckpt.pt'), {'step': 4}, str(tmp_path / 'ckpt-4.pt'))
    assert load(tmp_path) == load(tmp_path, 'ckpt-4.pt') == {'step': 4}
    assert sorted(os.listdir(tmp_path)) == ['ckpt-4.pt', 'ckpt.pt']


def test_an_interrupted_run_says_where_it_stopped(tmp_path, capsys):
    config, polls = config_of(*TINY, f'--logdir={tmp_path}'), iter(range(9))
    train.train(config, '', lambda: next(polls) >= 2)
    said = capsys.readouterr().out
    assert said == f'stopped: {tmp_path}/ckpt.pt holds step 2 of 4; the same command goes on from there\n'


def test_previews_are_of_the_ema_network_in_eval_mode_from_the_fixed_noise(tmp_path):
    config = config_of(*TINY, f'--logdir={tmp_path}', '--dropout=0.5')
    run = train.Run(config)
    for _ in range(3):
        run.update(torch.randn(8, 1, 8, 8))
    noise = Noise(derive_seed('preview', 0), range(4), (1, 8, 8), run.device)
    expected = build.sampler(config, Inference(copy.deepcopy(run.ema), torch.float32))(run.x_T, noise=noise)
    images = run.preview(lambda: False)
    assert torch.equal(images, expected) and torch.equal(images, run.preview(lambda: False))
    assert run.preview(lambda: True) is None


def test_previews_take_few_steps_by_order_two_unless_told_otherwise(tmp_path, monkeypatch):
    made = []
    sampler = build.sampler
    monkeypatch.setattr(build, 'sampler', lambda config, net: made.append(config) or sampler(config, net))
    monkeypatch.setattr(train.walk, 'denoise', lambda config, *rest: None)
    for flags, steps, order in [
        ([], 20, 2),
        (['--preview_steps=5', '--order=3', '--eta=0'], 5, 2),
        (['--preview_steps=1'], 1, 1),
        (['--preview_steps=0'], 0, 1),
        (['--preview_steps=100'], 0, 1),  # no more than --sample_steps would take
        (['--sample_steps=10', '--eta=0'], 10, 1),
    ]:
        train.Run(config_of(*TINY, '--T=100', f'--logdir={tmp_path}', *flags)).preview(lambda: False)
        assert (made[-1].sample_steps, made[-1].order) == (steps, order), flags


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
