"""Sample from a checkpoint: files, exact counts, and no effect of batch size or interruptions."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from absl.testing import flagsaver
from conftest import TINY
from PIL import Image
from runs import config_of, one_line

import main
import sample
from draw import picture, walk
from run.restore import restore


@pytest.fixture(scope='module')
def logdir(tmp_path_factory):
    """Train a few steps of a grey run and, in rgb/, a colour run."""
    folder = tmp_path_factory.mktemp('runs')
    rng = np.random.default_rng(0)
    (folder / 'images').mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / 'images' / f'{i}.png')
    for name, extra in (('grey', []), ('rgb', [f'--dataset={folder / "images"}'])):
        with flagsaver.flagsaver():
            argv = ['main.py', *TINY, '--train', '--lr=0.01', f'--logdir={folder / name}', *extra]
            assert main.main(main.parse_flags(argv)) == 0
    return folder


@pytest.mark.parametrize('weights, decay, hint', [('ema', 0.9999, True), ('ema', 0.5, False), ('net', 0.9999, False)])
def test_an_average_that_is_still_noise_is_named(tmp_path, cli, weights, decay, hint):
    logdir = f'--logdir={tmp_path}'
    assert cli(*TINY, '--train', logdir, f'--ema_decay={decay}')[0] == 0
    status, _, error = cli('--sample', logdir, '--num_images=1', f'--weights={weights}')
    said = 'the averaged weights of step 4 are still 100% those that the run began with: --weights=net may draw better'
    assert status == 0 and (said in error) == hint


@pytest.mark.parametrize(
    'trained, drawn, warned',
    [
        (['--p_uncond=0'], ['--guidance=2'], True),
        (['--p_uncond=0'], ['--guidance=0'], True),
        (['--p_uncond=0'], [], False),
        (['--p_uncond=0', '--p_uncond_schedule=linear'], ['--guidance=2'], False),
        ([], ['--guidance=2'], False),
    ],
)
def test_guidance_that_was_not_trained_for(tmp_path, cli, trained, drawn, warned):
    logdir = f'--logdir={tmp_path}'
    assert cli(*TINY, '--train', '--cond', logdir, *trained)[0] == 0
    status, _, error = cli('--sample', logdir, '--num_images=1', *drawn)
    assert status == 0 and ('guidance needs a network trained without labels too' in error) == warned


def images_in(folder):
    return np.load(folder / 'samples.npz')['arr_0']


@pytest.mark.parametrize('kind, shape', [('grey', (8, 8, 1)), ('rgb', (8, 8, 3))])
def test_what_sampling_writes(logdir, tmp_path, cli, kind, shape):
    argv = ['--sample', f'--logdir={logdir / kind}', '--num_images=7', f'--out={tmp_path}', '--sample_batch_size=3']
    status, out, error = cli(*argv)
    assert status == 0 and f'7 images in {tmp_path}' in out and 'sampling 7 images' in error
    names = sorted(os.listdir(tmp_path))
    assert names == [f'{i:06d}.png' for i in range(7)] + ['grid.png', 'samples.json', 'samples.npz']
    images = images_in(tmp_path)
    assert images.shape == (7, *shape) and images.dtype == np.uint8 and images.std() > 10
    for i in range(7):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f'{i:06d}.png')).reshape(shape), images[i])
    grid = np.asarray(Image.open(tmp_path / 'grid.png'))
    assert np.array_equal(grid[3:67:8, 3:67:8, : shape[2]], images[0])  # the first tile, enlarged 8 times
    assert len({image.tobytes() for image in images}) == 7


def test_batch_size_and_the_set_asked_for_change_no_image(logdir):
    config, net, _ = restore(config_of(f'--logdir={logdir / "rgb"}', '--precision=fp32', '--num_images=150'), set())
    drawn = {}
    for size in (150, 64, 7, 1):
        config.sample_batch_size = size
        wanted = range(150) if size > 1 else (0, 63, 64, 149)
        for chunk, x_0 in walk.draw(config, net, list(wanted)):
            for i, image in zip(chunk, x_0, strict=True):
                if i in drawn:
                    torch.testing.assert_close(image, drawn[i], atol=1e-5, rtol=0)
                drawn[i] = image
    assert len(drawn) == 150
    config.seed, config.sample_batch_size = 1, 4
    other = dict(zip(range(4), next(walk.draw(config, net, [0, 1, 2, 3]))[1], strict=True))
    assert all((other[i] - drawn[i]).abs().max() > 0.01 for i in other)


def test_an_interrupted_call_continues_to_the_same_images(logdir, tmp_path, cli):
    argv = ['--sample', f'--logdir={logdir / "grey"}', '--num_images=9', '--sample_batch_size=3', '--precision=fp32']
    assert cli(*argv, f'--out={tmp_path / "whole"}')[0] == 0
    config, net, _ = restore(config_of(*argv, f'--out={tmp_path / "parts"}'), set())
    polls = iter(range(1000))
    sample.sample(config, net, lambda: next(polls) > 13)  # within the second batch of 8 steps
    assert len(list((tmp_path / 'parts').glob('0*.png'))) == 3 and not (tmp_path / 'parts' / 'samples.npz').exists()
    os.remove(tmp_path / 'parts' / '000001.png')
    kept = (tmp_path / 'parts' / '000000.png').stat().st_mtime_ns
    assert cli(*argv, f'--out={tmp_path / "parts"}')[0] == 0
    assert (tmp_path / 'parts' / '000000.png').stat().st_mtime_ns == kept
    difference = images_in(tmp_path / 'parts').astype(int) - images_in(tmp_path / 'whole')
    assert abs(difference).max() <= 1


@pytest.fixture
def draw(logdir, tmp_path, cli):
    """Return draw(*flags) -> what --sample to out/ prints to stdout, and to stderr."""

    def run(*flags, status=0):
        code, said, error = cli('--sample', f'--logdir={logdir / "grey"}', f'--out={tmp_path / "out"}', *flags)
        assert code == status, error
        return said if not status else error

    return run


def test_more_images_extend_a_set_and_fewer_are_no_error(tmp_path, draw):
    draw('--num_images=3')
    first = images_in(tmp_path / 'out')
    draw('--num_images=5')
    five = images_in(tmp_path / 'out')
    assert len(five) == 5 and np.array_equal(five[:3], first)
    said = draw('--num_images=4')
    assert '4 images in' in said and 'all drawn before' in said and '1 more of an earlier call lie there' in said
    assert np.array_equal(images_in(tmp_path / 'out'), five[:4]) and (tmp_path / 'out' / '000004.png').exists()


def test_samples_of_other_settings_are_set_aside(tmp_path, draw):
    out, prev = tmp_path / 'out', tmp_path / 'out.prev'
    draw('--num_images=5')
    for extra, why in (('--seed=1', 'seed'), ('--weights=net', 'seed, weights'), ('--eta=0.5', 'eta, weights')):
        before = images_in(out)
        (out / '.DS_Store').write_text('')  # left by an operating system, no one's work
        said = draw('--num_images=5', extra)
        changed = re.search('held samples of other (.*): they are in .*out.prev now', said)[1]
        assert sorted(changed.split(', ')) == why.split(', ')
        assert np.array_equal(images_in(prev), before) and not np.array_equal(images_in(out), before)
        assert len(list(out.glob('0*.png'))) == 5


def test_a_record_of_before_a_flag_existed_is_continued(tmp_path, draw):
    draw('--num_images=2')
    record = tmp_path / 'out' / 'samples.json'
    used = json.loads(record.read_text())
    for name in ('head_dim', 'device', 'precision'):
        del used[name]
    record.write_text(json.dumps(used))
    assert 'all drawn before' in draw('--num_images=2') and not (tmp_path / 'out.prev').exists()


def test_samples_of_another_precision_are_not_taken_for_those_of_this_one(tmp_path, draw):
    draw('--num_images=2', '--weights=net', '--precision=fp32')
    exact = images_in(tmp_path / 'out')
    assert 'held samples of other precision: ' in draw('--num_images=2', '--weights=net', '--precision=bf16')
    assert not np.array_equal(images_in(tmp_path / 'out'), exact)


@pytest.mark.parametrize('text', ['[1]', '{"mine": 1}', '"weights"', 'none'])
def test_a_record_of_others_is_not_touched(tmp_path, draw, text):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'samples.json').write_text(text)
    assert 'holds samples.json, which --sample or --edit did not make' in one_line(draw('--num_images=1', status=1))
    assert (tmp_path / 'out' / 'samples.json').read_text() == text


def test_an_image_that_has_changed_since_is_named(tmp_path, draw):
    draw('--num_images=3', '--precision=fp32')
    whole, path = (tmp_path / 'out' / 'samples.npz').read_bytes(), tmp_path / 'out' / '000001.png'
    content = path.read_bytes()
    for change in (
        lambda: Image.open(path).convert('RGB').save(path),
        lambda: Image.open(path).convert('P').save(path),
        lambda: Image.open(path).resize((4, 16)).save(path),
        lambda: path.write_bytes(content[:60]),
        lambda: path.write_bytes(b''),
    ):
        change()
        error = one_line(draw('--num_images=3', '--precision=fp32', status=1))
        assert f'{path} is not as it was drawn' in error and 'the same command draws it again' in error
        path.unlink()
        draw('--num_images=3', '--precision=fp32')
        assert (tmp_path / 'out' / 'samples.npz').read_bytes() == whole


@pytest.mark.parametrize('name', ['cat.png', 'notes.txt', 'mine.npz', 'folder/a.txt'])
def test_what_others_made_is_not_touched(tmp_path, draw, name):
    out, prev = tmp_path / 'out', tmp_path / 'out.prev'
    draw('--num_images=1')
    draw('--num_images=1', '--seed=1')
    for folder in (prev, out):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('mine')
        error = draw('--num_images=1', '--seed=2', status=1)
        assert path.read_text() == 'mine' and 'choose another --out' in error
        assert (path.name.split('/')[0] if folder is out else 'out.prev is in the way') in error or 'folder' in error
    assert json.loads((out / 'samples.json').read_text())['seed'] == 1


def test_images_without_a_record_are_not_ours(tmp_path, draw):
    (tmp_path / 'out').mkdir()
    Image.new('L', (8, 8)).save(tmp_path / 'out' / '000000.png')
    assert 'holds 000000.png, which --sample or --edit did not make' in draw('--num_images=1', status=1)


def test_the_checkpoint_decides_the_network_and_the_flags_given_the_sampler(logdir, tmp_path, cli):
    out = tmp_path / 'out'
    # No flag of the network is given, and the defaults describe another network.
    assert cli('--sample', f'--ckpt={logdir / "grey" / "ckpt.pt"}', '--num_images=2', f'--out={out}')[0] == 0
    with open(out / 'samples.json') as file:
        used = json.load(file)
    assert (used['ch_mult'], used['T'], used['channels'], used['sample_steps'], used['eta']) == ([1], 8, 1, 0, 1.0)
    argv = ['--sample', f'--logdir={logdir / "grey"}', '--num_images=2', f'--out={tmp_path / "ddim"}']
    status, _, error = cli(*argv, '--sample_steps=4', '--eta=0')
    assert status == 0 and '4/4' in error
    status, _, error = cli(*argv, '--ch=64')
    assert status == 2 and '--ch=64 (trained with 32)' in error


HIGHER = [['--order=2'], ['--order=2', '--eta=0'], ['--order=3', '--corrector', '--eta=0'], ['--corrector', '--eta=0']]


@pytest.mark.parametrize('flags', HIGHER, ids=' '.join)
def test_every_solver_draws_the_same_in_any_batches(logdir, tmp_path, cli, flags):
    argv = ['--sample', f'--logdir={logdir / "grey"}', '--weights=net', '--num_images=5', '--sample_steps=5', *flags]
    for size in (2, 5):
        assert cli(*argv, f'--sample_batch_size={size}', f'--out={tmp_path / str(size)}')[0] == 0
    two, five = (images_in(tmp_path / str(size)).astype(int) for size in (2, 5))
    assert abs(two - five).max() <= 1 and five.std() > 10
    record = json.loads((tmp_path / '5' / 'samples.json').read_text())
    assert f'--order={record["order"]}' in flags or record['order'] == 1
    assert record['corrector'] == ('--corrector' in flags)


@pytest.mark.parametrize('kind', [
    ['--cond', '--guidance=2'],
    ['--mean_type=v', '--clip_denoised'],
    ['--mean_type=xprev'],
    ['--loss=hybrid', '--var_type=learned_range'],
    ['--dataset=s_curve', '--net=point_mlp', '--prior=data'],
], ids=' '.join)  # fmt: skip
def test_every_solver_draws_from_every_kind_of_model(tmp_path, cli, kind):
    assert cli(*TINY, '--train', '--total_steps=2', f'--logdir={tmp_path}', *kind)[0] == 0
    for i, flags in enumerate(HIGHER):
        drawn_by = ['--num_images=4', '--sample_steps=4', *kind[-1:], *flags]  # no checkpoint suggests --guidance
        assert cli('--sample', f'--logdir={tmp_path}', f'--out={tmp_path / str(i)}', *drawn_by)[0] == 0
        drawn = np.load(tmp_path / str(i) / ('points.npz' if '--net=point_mlp' in kind else 'samples.npz'))
        values = drawn[drawn.files[0]]
        assert np.isfinite(values).all() and values.std() > 0.1, flags


def test_listed_timesteps_stand_in_place_of_a_number(logdir, tmp_path, cli):
    argv = ['--sample', f'--logdir={logdir / "grey"}', '--num_images=2']
    listed, counted = (tmp_path / name for name in ('listed', 'counted'))
    status, _, error = cli(*argv, '--timesteps=6,4,2,0', f'--out={listed}')
    assert status == 0 and '4/4 steps' in error
    assert cli(*argv, '--sample_steps=4', '--spacing=leading', f'--out={counted}')[0] == 0
    record = json.loads((listed / 'samples.json').read_text())
    assert (record['timesteps'], record['sample_steps']) == ([6, 4, 2, 0], 4)
    assert (listed / 'samples.npz').read_bytes() == (counted / 'samples.npz').read_bytes()
    flagfile = tmp_path / 'flags.txt'
    flagfile.write_text('--timesteps=0,3')  # the command line overrides a flagfile
    for flags, steps in (([], '2/2'), (['--sample_steps=3'], '3/3'), (['--timesteps=7,1'], '2/2')):
        status, _, error = cli(f'--flagfile={flagfile}', *argv, *flags, f'--out={tmp_path / "out"}')
        assert status == 0 and f'{steps} steps' in error


def test_another_order_than_the_checkpoints_does_not_take_its_spacing(logdir, tmp_path, cli):
    argv = ['--sample', f'--logdir={logdir / "grey"}', '--num_images=1', '--sample_steps=3', f'--out={tmp_path}']
    for flags, spacing in (([], 'leading'), (['--order=2'], 'auto'), (['--order=2', '--spacing=quad'], 'quad')):
        state = torch.load(logdir / 'grey' / 'ckpt.pt', weights_only=True)
        state['config']['spacing'] = 'leading'
        torch.save(state, tmp_path / 'ckpt.pt')
        assert cli(*argv, f'--ckpt={tmp_path / "ckpt.pt"}', f'--out={tmp_path / "out"}', *flags)[0] == 0
        assert json.loads((tmp_path / 'out' / 'samples.json').read_text())['spacing'] == spacing


@pytest.mark.parametrize('flags, why', [
    (['--timesteps=7,3', '--sample_steps=2'], '--timesteps takes the place of --sample_steps: leave one of them out'),
    (['--timesteps=7,3', '--spacing=quad', '--sample_steps=2'], 'the place of --sample_steps and --spacing'),
    (['--timesteps=7,3,3'], '--timesteps must fall, as 999,500,0 do, or rise, and name no timestep twice'),
    (['--timesteps=3,7,1'], '--timesteps must fall'),
    (['--timesteps=8,3'], 'between 0 and T - 1 = 7, not [3, 8]'),
    (['--timesteps=-1'], '--timesteps'),
    (['--order=3'], 'order 3 is for eta = 0, where a step adds no noise, not for eta = 1'),
    (['--order=3', '--eta=0', '--sample_steps=2'], 'order 3 needs 3 sampling steps or more, not 2'),
    (['--corrector'], 'a corrector is for eta = 0'),
    (['--order=4'], 'order'),
    (['--eps_scale=0'], 'eps_scale must be above 0'),
])  # fmt: skip
def test_samplers_that_cannot_be_are_one_line(logdir, tmp_path, cli, flags, why):
    status, _, error = cli('--sample', f'--logdir={logdir / "grey"}', f'--out={tmp_path / "out"}', *flags)
    assert status == 2 and why in one_line(error) and not (tmp_path / 'out').exists()


def test_an_interrupted_call_says_how_to_go_on(logdir, tmp_path, capsys):
    argv = [f'--logdir={logdir / "grey"}', '--num_images=9', '--sample_batch_size=3', f'--out={tmp_path}']
    config, net, _ = restore(config_of(*argv), {})
    polls = iter(range(1000))
    sample.sample(config, net, lambda: next(polls) > 13)
    assert f'stopped: 3 of 9 images in {tmp_path}; the same command draws the others' in capsys.readouterr().out


def test_a_hundred_images_are_drawn_if_nothing_is_said(logdir, tmp_path, cli):
    assert config_of().num_images is None
    assert f'100 images in {tmp_path}' in cli('--sample', f'--logdir={logdir / "grey"}', f'--out={tmp_path}')[1]


def test_by_default_samples_lie_beside_the_checkpoint(logdir, tmp_path, cli):
    shutil.copy(logdir / 'grey' / 'ckpt.pt', tmp_path / 'ckpt.pt')
    assert cli('--sample', f'--ckpt={tmp_path / "ckpt.pt"}', '--num_images=1')[0] == 0
    assert (tmp_path / 'samples' / '000000.png').exists()


def test_ema_and_net_weights_differ(logdir, tmp_path, cli):
    for weights in ('ema', 'net'):
        argv = ['--sample', f'--logdir={logdir / "grey"}', '--num_images=2', f'--out={tmp_path / weights}']
        assert cli(*argv, f'--weights={weights}')[0] == 0
    assert not np.array_equal(images_in(tmp_path / 'ema'), images_in(tmp_path / 'net'))


def test_uint8_rounds_to_the_nearest():
    levels = torch.arange(256.0) / 127.5 - 1
    assert torch.equal(picture.to_uint8(levels + 0.003), torch.arange(256, dtype=torch.uint8))
    assert picture.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_a_grid_is_readable_and_exact():
    levels = torch.arange(256, dtype=torch.uint8)
    for size, scale in ((8, 8), (28, 2), (32, 2), (64, 1), (256, 1)):
        images = levels[torch.arange(5 * size * size).reshape(5, 1, size, size) % 200]
        grid = np.asarray(picture.grid(images))
        side = size * scale
        assert grid.shape == (2 * side + 9, 3 * side + 12, 3)  # 3 pixels around each image
        for i in range(6):
            y, x = 3 + i // 3 * (side + 3), 3 + i % 3 * (side + 3)
            found = grid[y : y + side, x : x + side, 0]
            exact = np.kron(images[i, 0], np.ones((scale, scale))) if i < 5 else 255  # the empty place is white
            assert np.array_equal(found, np.broadcast_to(exact, (side, side)))
        assert (grid[:3] == 255).all() and (grid[:, side + 3 : side + 6] == 255).all()
