"""Several ranks give what one process gives: the same steps, images and scores."""

import json
import os
import re
import shlex
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, largest_error
from PIL import Image
from ranks import Ranks
from runs import Forked, differences, load, one_line, scalars, without_logdir

import score
from run import distributed

# With fewer than 64 channels, GroupNorm has one channel per group and cancels biases: their gradients are rounding
# errors, which Adam turns into steps. The same holds for the biases of attention's keys, which are not compared.
WIDE = [*(flag for flag in TINY if not flag.startswith('--ch')), '--ch=64', '--ch_mult=1', '--total_steps=20']


def network(run, kind='net_model'):
    """Return the weights of a run as one vector."""
    weights = load(run)[kind]
    return torch.cat([weights[key].flatten() for key in sorted(weights) if not key.endswith('proj_k.bias')])


@pytest.mark.parametrize(
    'world, flags',
    [
        (2, '--random_flip --sample_step=10 --sample_size=5'),
        (3, '--batch_size=10 --grad_accum=2'),  # 4, 3 and 3 images: parts of 2 and 2, 2 and 1, 2 and 1
        (2, '--batch_size=7 --cond --antithetic_t --grad_clip=0.1'),
        (2, '--dataset=moons --net=point_mlp --ch=32 --batch_size=9'),
        (2, '--loss=hybrid --var_type=learned_range --t_sampler=loss_aware --batch_size=64 --grad_accum=2'),
    ],
)
def test_training_equals_one_process(tmp_path, world, flags):
    flags = [*WIDE, '--lr=1e-3', '--train', *shlex.split(flags)]
    alone = Forked(*flags, '--logdir', tmp_path / 'one', log=tmp_path / 'log')
    ranks = Ranks(world, *flags, '--logdir', tmp_path / 'many', log=tmp_path / 'log')
    assert (alone.status(), ranks.status()) == (0, [0] * world), alone.error() + ranks.error()
    losses = [scalars(tmp_path / run, 'loss') for run in ('one', 'many')]
    assert losses[0].keys() == losses[1].keys() == set(range(1, 21))
    for step, loss in losses[0].items():
        assert losses[1][step] == pytest.approx(loss, rel=1e-5), step
    for kind in ('net_model', 'ema_model'):
        one, many = (network(tmp_path / run, kind) for run in ('one', 'many'))
        assert largest_error(many, one) < 1e-5
    state = load(tmp_path / 'many')
    assert state['ranks'] == world and not any(key.startswith('module.') for key in state['net_model'])
    assert not differences(load(tmp_path / 'one')['x_T'], state['x_T'])
    for shown in (tmp_path / 'one' / 'sample').glob('*.png'):
        one, many = (np.asarray(Image.open(tmp_path / run / 'sample' / shown.name), int) for run in ('one', 'many'))
        assert abs(one - many).max() <= 1


def test_compiled_training_on_two_ranks_equals_one_process_uncompiled(tmp_path):
    flags = [*WIDE, '--lr=1e-3', '--batch_size=64', '--train']
    flags += ['--loss=hybrid', '--var_type=learned_range', '--t_sampler=loss_aware']
    alone = Forked(*flags, '--logdir', tmp_path / 'one', log=tmp_path / 'log')
    ranks = Ranks(2, *flags, '--compile=on', '--logdir', tmp_path / 'two', log=tmp_path / 'log')
    assert (alone.status(), ranks.status(timeout=600)) == (0, [0, 0]), alone.error() + ranks.error()
    losses = [scalars(tmp_path / run, 'loss') for run in ('one', 'two')]
    assert losses[0].keys() == losses[1].keys() == set(range(1, 21))
    for step, loss in losses[0].items():
        assert losses[1][step] == pytest.approx(loss, rel=1e-4), step
    for kind in ('net_model', 'ema_model'):
        assert largest_error(*(network(tmp_path / run, kind) for run in ('two', 'one'))) < 1e-4
    assert not any('module.' in key or '_orig_mod' in key for key in load(tmp_path / 'two')['net_model'])


def test_a_streamed_data_set_is_shared_without_overlap_or_loss(tmp_path, folder_of_images, monkeypatch):
    flags = [*WIDE, '--train', f'--dataset={folder_of_images}', '--img_size=8', '--batch_size=5', '--num_workers=1']
    alone = Forked(*flags, '--logdir', tmp_path / 'one', log=tmp_path / 'log', before=stream)
    ranks = Ranks(2, *flags, '--logdir', tmp_path / 'two', log=tmp_path / 'log', before={0: stream, 1: stream})
    assert (alone.status(), ranks.status()) == (0, [0, 0]), ranks.error()
    assert largest_error(network(tmp_path / 'two'), network(tmp_path / 'one')) < 1e-5


def stream():
    """Make every data set too large to keep on the device."""
    from dataset import loader

    loader.RESIDENT_BYTES = 0


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp('trained') / 'run'
    assert Forked(*TINY, '--cond', '--train', '--logdir', run, log=f'{run}.log').status() == 0
    return run


def test_images_are_the_same_whatever_the_number_of_ranks(trained, tmp_path):
    flags = ['--sample', '--logdir', trained, '--num_images=70', '--sample_batch_size=16', '--device=cpu']
    flags += ['--precision=fp32']
    drawn = {}
    for world in (1, 2, 3):
        out = tmp_path / str(world)
        assert Ranks(world, *flags, f'--out={out}', log=tmp_path / 'log').status() == [0] * world
        assert sorted(path.name for path in out.glob('0*.png')) == [f'{i:06d}.png' for i in range(70)]
        drawn[world] = np.load(out / 'samples.npz')['arr_0'].astype(int)
        assert drawn[world].shape == (70, 8, 8, 1) and (out / 'grid.png').exists()
    assert abs(drawn[2] - drawn[1]).max() <= 1 and abs(drawn[3] - drawn[1]).max() <= 1


@pytest.mark.parametrize('flags', ['--edit=inpaint --mask=random:0.5 --jump=2 --resample=2', '--edit=vary'])
def test_edited_images_are_the_same_whatever_the_number_of_ranks(trained, tmp_path, flags):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / 'images.npz', arr_0=images)
    argv = [*flags.split(), '--logdir', trained, f'--images={tmp_path / "images.npz"}', '--guidance=0', '--out']
    edited = []
    for world in (1, 2):
        argv[-1] = f'--out={tmp_path / str(world)}'
        ranks = Ranks(world, *argv, '--variants=2', '--device=cpu', '--precision=fp32', log=tmp_path / 'log')
        assert ranks.status() == [0] * world, ranks.error()
        edited.append(np.load(tmp_path / str(world) / 'samples.npz')['arr_0'].astype(int))
    assert edited[0].shape == (10, 8, 8, 1) and abs(edited[1] - edited[0]).max() <= 1


def test_scores_are_the_same_whatever_the_number_of_ranks(trained, here):
    metrics = score.METRICS.keys() - {'sfid'}  # which is of Inception alone
    flags = ['--eval', '--logdir', trained, '--num_images=101', '--feature_net=classifier', '--device=cpu']
    flags += ['--precision=fp32', '--sample_batch_size=32', f'--metrics={",".join(metrics)}']
    lines = []
    for world in (1, 3):
        ranks = Ranks(world, *flags, log=here / 'log')
        assert ranks.status() == [0] * world, ranks.error()
        lines.append((trained / 'eval.txt').read_text().splitlines())
    assert [len(found) for found in lines] == [1, 2]  # rank 0 alone added one
    one, many = map(json.loads, lines[1])
    assert one['n'] == many['n'] == 101 and one['label_accuracy'] == many['label_accuracy']
    for key in (f'{figure}(classifier)' for name in metrics for figure in score.METRICS[name].figures):
        assert many[key] == pytest.approx(one[key], rel=1e-6), key


def test_one_rank_keeps_the_best_checkpoint(here):
    flags = [*TINY, '--train', '--logdir=run', '--eval_step=1', '--num_images=20', '--feature_net=classifier']
    ranks = Ranks(2, *flags, '--metrics=fid', '--keep_best=FID', '--lr=0.01', log=here / 'log')
    assert ranks.status() == [0, 0], ranks.error()
    records = [json.loads(line) for line in (here / 'run' / 'eval.txt').read_text().splitlines()]
    best = min(records, key=lambda record: record['FID(classifier)'])
    assert [record['step'] for record in records] == [1, 2, 3, 4] and (here / 'run' / 'eval.png').exists()
    state = load('run', 'ckpt.best.pt')
    assert state['step'] == state['best']['step'] == best['step'] and load('run')['step'] == 4


def test_bits_per_dim_are_the_same_whatever_the_number_of_ranks(trained, tmp_path):
    flags = ['--nll', '--logdir', trained, '--device=cpu', '--precision=fp32', '--nll_steps=4']
    for world in (1, 3):
        ranks = Ranks(world, *flags, log=tmp_path / 'log')
        assert ranks.status() == [0] * world, ranks.error()
    one, many = map(json.loads, (trained / 'nll.txt').read_text().splitlines())
    assert one['n'] == many['n'] == 359
    for key in ('bits_per_dim', 'standard_error', 'L_T', 'L_0'):
        assert many[key] == pytest.approx(one[key], rel=1e-6), key


def test_another_number_of_ranks_resumes_and_says_so(tmp_path):
    flags = [*WIDE, '--lr=1e-3', '--train', '--logdir']
    whole = Forked(*flags, tmp_path / 'whole', log=tmp_path / 'log')
    assert Ranks(3, *flags, tmp_path / 'run', '--total_steps=10', log=tmp_path / 'log').status() == [0, 0, 0]
    ranks = Ranks(2, *flags, tmp_path / 'run', log=tmp_path / 'log')
    assert ranks.status() == [0, 0] and whole.status() == 0
    assert 'at step 10, on 2 processes in place of 3' in ranks.error()
    assert largest_error(network(tmp_path / 'run'), network(tmp_path / 'whole')) < 1e-5


def test_a_signal_saves_at_the_same_step_on_all_ranks(tmp_path):
    flags = [*TINY, '--train', '--logdir']
    ranks = Ranks(2, *flags, tmp_path / 'run', '--total_steps=100000', log=tmp_path / 'log')
    while not (tmp_path / 'run' / 'flagfile.txt').exists():
        time.sleep(0.1)
    time.sleep(1)
    for rank in ranks:
        rank.process.terminate()
        time.sleep(0.2)
    assert ranks.status() == [128 + signal.SIGTERM] * 2, ranks.error()
    step = load(tmp_path / 'run')['step']
    assert step > 0
    again = [*flags, tmp_path / 'run', f'--total_steps={step + 5}']
    whole = Ranks(2, *flags, tmp_path / 'whole', f'--total_steps={step + 5}', log=tmp_path / 'log')
    assert whole.status() == [0, 0]
    assert Ranks(2, *again, log=tmp_path / 'log').status() == [0, 0]
    states = [without_logdir(load(tmp_path / run)) for run in ('run', 'whole')]
    for state in states:
        del state['config']
    assert not differences(*states)


@pytest.mark.parametrize('world', [1, 2])
def test_a_checkpoint_is_saved_every_so_many_minutes(tmp_path, world):
    flags = [*TINY, '--train', '--logdir', tmp_path, '--total_steps=100000', '--save_minutes=0.02']
    ranks = Ranks(world, *flags, log=tmp_path / 'log')
    deadline = time.monotonic() + 60
    while not (tmp_path / 'ckpt.prev.pt').exists():
        assert time.monotonic() < deadline, ranks.error()
        time.sleep(0.1)
    for rank in ranks:
        rank.process.kill()
    assert ranks.status() == [-9] * world
    assert load(tmp_path, 'ckpt.prev.pt')['step'] > 0


def test_more_ranks_than_a_batch_has_images_draw_and_score(trained, here):
    flags = ['--sample', '--eval', '--nll', '--nll_steps=2', '--logdir', trained, '--batch_size=2', '--num_images=2']
    ranks = Ranks(3, *flags, '--feature_net=classifier', '--out=out', log='log')
    assert ranks.status() == [0, 0, 0], ranks.error()
    assert len(np.load('out/samples.npz')['arr_0']) == 2
    ranks = Ranks(3, *TINY, '--train', '--batch_size=2', '--logdir=run', log='log')
    assert ranks.status() == [2, 2, 2] and 'batch_size 2 gives nothing to some' in one_line(ranks[0].error())


def test_a_rank_without_a_world_is_no_rank(cli, tmp_path, monkeypatch):
    monkeypatch.setenv('RANK', '3')
    monkeypatch.setenv('LOCAL_RANK', '3')
    status, _, error = cli(*TINY, '--train', '--sample', '--logdir', tmp_path)
    assert status == 0 and 'parameters on cpu' in error and (tmp_path / 'samples' / 'grid.png').exists()
    status, _, error = cli(*TINY, '--train', '--batch_size=0', '--logdir', tmp_path)
    assert status == 2 and 'batch_size' in one_line(error)


def test_each_machine_writes_what_it_lacks_before_its_others_look(tmp_path):
    """Try two machines of two ranks, first without a shared folder, then with one."""
    for shared in (False, True):
        firsts = {rank: partial(on_two_machines, rank, str(tmp_path / str(shared)), shared) for rank in range(4)}
        ranks = Ranks(4, *TINY, '--train', '--logdir', tmp_path / 'run', log=tmp_path / 'log', before=firsts)
        assert ranks.status() == [0] * 4, ranks.error()
        made = sorted(path.read_text() for path in tmp_path.glob(f'{shared}*'))
        assert made == (['0'] if shared else ['0', '2'])


def on_two_machines(rank, place, shared):
    import dataset

    os.environ['LOCAL_RANK'] = str(rank % 2)
    place, load = Path(place if shared else f'{place}{rank // 2}'), dataset.load

    def download(*args):
        if not place.exists():
            time.sleep(0.5)  # gives the others time to look
            with open(place, 'x') as file:
                file.write(str(rank))
        return load(*args)

    dataset.load = download


def test_one_device_is_not_for_several_processes(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    for device, why in (
        ('cuda:1', 'one device for 2 processes: use --device=cuda'),
        ('mps', 'cannot share work on mps'),
    ):
        with pytest.raises(ValueError, match=why):
            distributed.start(torch.device(device))


def test_an_import_is_for_one_process(tmp_path):
    ranks = Ranks(2, '--import_ckpt=ema_cifar10', '--logdir', tmp_path / 'run', log=tmp_path / 'log')
    assert ranks.status() == [2, 2] and 'is for one process' in one_line(ranks[0].error()) and not ranks[1].error()


def test_ranks_must_share_the_logdir(tmp_path):
    assert Forked(*TINY, '--train', '--logdir', tmp_path / 'a', log=tmp_path / 'log').status() == 0
    ranks = Ranks(
        2, *TINY, '--train', '--logdir', tmp_path / 'a', '--total_steps=8', log=tmp_path / 'log', before={1: elsewhere}
    )
    assert ranks.status() == [1, 1] and re.search('not the same on every rank.*--logdir', one_line(ranks[0].error()))


def elsewhere():
    """Make a rank see a disk without a checkpoint."""
    import train

    train.Run.resume = lambda self: None


@pytest.mark.parametrize(
    'environment, flags, why',
    [
        ({'RANK': '0', 'WORLD_SIZE': '2'}, [], 'add --parallel'),
        ({}, ['--parallel', '--total_steps=1'], None),
    ],
)
def test_parallel_and_torchrun_ask_for_each_other(cli, tmp_path, monkeypatch, environment, flags, why):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    status, _, err = cli(*TINY, *flags, '--train', '--logdir', tmp_path / 'run')
    if why:
        assert status == 2 and why in err and not (tmp_path / 'run').exists()
    else:
        assert status == 0 and 'there is one device' in err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_one_nccl_rank_takes_the_steps_of_a_plain_run(tmp_path):
    flags = [*WIDE, '--lr=1e-3', '--train', '--device=cuda', '--logdir']
    alone = Forked(*flags, tmp_path / 'one', log=tmp_path / 'log')
    assert alone.status() == 0 and Ranks(1, *flags, tmp_path / 'nccl', log=tmp_path / 'log').status() == [0]
    assert largest_error(network(tmp_path / 'nccl'), network(tmp_path / 'one')) < 1e-5
