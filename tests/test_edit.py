"""Edit images by the checkpoint of a short run: what is known stays, and what does not fit is refused in one line."""

import os
import shutil

import numpy as np
import pytest
import torch
from absl.testing import flagsaver
from conftest import TINY
from PIL import Image
from runs import config_of, one_line

import main
from draw import masks
from process.operators import LUMA
from run import build
from run.restore import restore

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
IMAGES.reshape(-1)[:192] = np.arange(64, 256)  # nearly every grey


@pytest.fixture(scope='module')
def logdir(tmp_path_factory):
    """Train a run on grey digits, one on their labels, one in colour and one on points."""
    folder = tmp_path_factory.mktemp('runs')
    points = ['--dataset=moons', '--net=point_mlp']
    for name, extra in {'grey': [], 'cond': ['--cond'], 'colour': ['--channels=3'], 'points': points}.items():
        argv = ['main.py', *TINY, '--train', '--lr=0.02', '--ema_decay=0', *extra, f'--logdir={folder / name}']
        with flagsaver.flagsaver():
            assert main.main(main.parse_flags(argv)) == 0
    return folder


def save(folder, images):
    os.makedirs(folder, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(np.asarray(image, dtype=np.uint8)).save(f'{folder}/{i}.png')
    return folder


@pytest.fixture
def edit(tmp_path, monkeypatch, logdir, cli):
    """Enter a folder with IMAGES in images/, and return a function that edits them: (*flags) -> (samples, stdout)."""
    monkeypatch.chdir(tmp_path)
    save('images', IMAGES)

    def run(*flags, of='grey', status=0):
        argv = [f'--logdir={logdir / of}', '--images=images', '--out=out', '--precision=fp32', *flags]
        code, out, error = cli(*argv)
        assert code == status, error
        if status:
            assert not os.path.exists('out')
            return one_line(error)
        return np.load('out/samples.npz')['arr_0'], out

    return run


@pytest.mark.parametrize(
    'how', ['--order=1', '--order=2 --sample_steps=6', '--order=3 --corrector --eta=0', '--clip_denoised']
)
@pytest.mark.parametrize('mask', ['half', 'box', 'lines', 'random:0.3'])
def test_known_pixels_come_out_exactly_and_variants_differ(edit, mask, how):
    samples, out = edit('--edit=inpaint', f'--mask={mask}', '--variants=2', '--resample=2', '--jump=2', *how.split())
    known = masks.known(mask, 'images', 3, 8, 8, 0)[:, 0].numpy().repeat(2, axis=0)
    sources = IMAGES.repeat(2, axis=0)
    assert samples.shape == (6, 8, 8, 1) and '6 images in out' in out
    assert np.array_equal(samples[..., 0][known], sources[known])
    assert (samples[0] != samples[1]).any() and (samples[..., 0] != sources).any()
    assert np.array_equal(np.array(Image.open('out/000003.png')), samples[3, ..., 0])
    with Image.open('out/grid.png') as grid:
        assert grid.width > 4 * 64 and grid.height > 3 * 64  # source, known and two variants of three sources


def test_a_mask_covers_what_its_name_says():
    def share(mask):
        return 1 - masks.known(mask, '', 2, 8, 6, 0).float().mean((1, 2, 3))

    assert share('half').tolist() == share('lines').tolist() == [0.5, 0.5]
    assert share('box')[0] == pytest.approx(4 * 4 / 48) and share('random:0.25')[0] == 0.25
    assert masks.known('half', '', 1, 8, 6, 0)[0, 0, :, :3].all()
    assert not masks.known('lines', '', 1, 8, 6, 0)[0, 0, 1::2].any()
    box = torch.zeros(8, 6, dtype=torch.bool)
    box[2:7, 1:3] = True  # rows, columns
    assert torch.equal(~masks.known('box:1,2,3,7', '', 1, 8, 6, 0)[0, 0], box)
    a, b = masks.known('random:0.5', '', 2, 8, 6, 0)
    assert (a != b).any() and torch.equal(a, masks.known('random:0.5', '', 1, 8, 6, 0)[0])


def test_a_mask_is_a_file_or_one_file_per_image(edit):
    anew = np.random.default_rng(1).random((3, 8, 8)) < 0.4
    save('masks', 255 * anew)
    each, _ = edit('--edit=inpaint', '--mask=masks', '--resample=1')
    assert all(np.array_equal(each[i, ..., 0][~anew[i]], IMAGES[i][~anew[i]]) for i in range(3))
    Image.fromarray((255 * anew[0]).astype(np.uint8)).convert('RGB').save('one.png')
    one, out = edit('--edit=inpaint', '--mask=one.png', '--resample=1')
    assert 'are in out.prev now' in out
    assert np.array_equal(one[..., 0][:, ~anew[0]], IMAGES[:, ~anew[0]])
    assert (one[1, ..., 0] != each[1, ..., 0])[~anew[1]].any()


def test_an_image_depends_on_its_number_alone_and_is_not_made_twice(edit):
    flags = '--edit=inpaint', '--mask=box', '--variants=3', '--resample=2', '--jump=4'
    whole, _ = edit(*flags)
    os.remove('out/000004.png')
    again, out = edit(*flags, '--sample_batch_size=2')
    assert np.abs(whole.astype(int) - again).max() <= 1 and 'before' not in out
    assert 'all drawn before' in edit(*flags)[1]
    shutil.rmtree('images')
    save('images', IMAGES[::-1])
    assert 'held samples of other edit' in edit(*flags)[1]
    assert edit(*flags, '--sample')[1].count('held samples of other') == 2  # each verb sets the other's aside


def test_a_walk_too_short_to_go_back_is_said(edit, logdir, cli):
    argv = '--images=images', f'--logdir={logdir / "grey"}', '--edit=inpaint', '--mask=half', '--resample=2'  # T = 8
    for jump, said in ((8, 1), (7, 0)):
        status, _, error = cli(*argv, f'--jump={jump}', f'--out=out{jump}')
        assert status == 0 and error.count('--resample=2 changes nothing in 8 steps of --jump=8') == said


def test_a_weak_variation_stays_near_and_begins_at_its_share_of_T(edit, logdir, monkeypatch):
    config, net, _ = restore(config_of(f'--logdir={logdir / "grey"}', '--precision=fp32'), {})
    began = []
    begin = build.GaussianDiffusionSampler.trajectory
    monkeypatch.setattr(
        build.GaussianDiffusionSampler,
        'trajectory',
        lambda self, x, y, start, *rest: began.append((start, x)) or begin(self, x, y, start, *rest),
    )
    edit('--edit=vary', '--strength=0.5', '--variants=2')
    ((start, x),) = began
    assert start == 4  # of T = 8
    kept = build.sampler(config, None).alphas_bar[3].item()
    z = (x[:, 0] - kept**0.5 * (torch.from_numpy(IMAGES).repeat_interleave(2, 0) / 127.5 - 1)) / (1 - kept) ** 0.5
    assert abs(z.mean()) < 0.25 and abs(z.std() - 1) < 0.2 and (z[0] - z[1]).abs().max() > 1
    weak, _ = edit('--edit=vary', '--strength=0.1', '--eta=0')
    strong, _ = edit('--edit=vary', '--strength=1', '--eta=0')
    near, far = (np.abs(x[..., 0].astype(int) - IMAGES).mean() for x in (weak, strong))
    assert near < far / 2


def test_upscaled_images_shrink_to_their_sources(edit):
    small = IMAGES[:, ::2, ::2] // 2 + 64  # far from black and white, to which images are clipped
    save('small', small)
    samples, _ = edit(
        '--edit=upscale', '--images=small', '--factor=2', '--resample=1', '--variants=2', '--clip_denoised'
    )
    blocks = samples.reshape(6, 4, 2, 4, 2)
    unclipped = ((blocks > 0) & (blocks < 255)).all((2, 4))
    assert samples.shape == (6, 8, 8, 1) and unclipped.any()
    assert np.abs(blocks.mean((2, 4)) - small.repeat(2, axis=0))[unclipped].max() < 0.51


def test_coloured_images_have_the_greys_of_their_sources(edit):
    samples, _ = edit('--edit=colorize', '--resample=1', of='colour')
    unclipped = ((samples > 0) & (samples < 255)).all(3)
    assert samples.shape == (3, 8, 8, 3) and np.ptp(samples.astype(int), axis=3).max() > 10
    assert np.abs(samples @ np.array(LUMA) - IMAGES)[unclipped].max() < 0.51


def test_labels_are_those_of_the_images(edit):
    assert 'say with --labels' in edit('--edit=inpaint', '--mask=half', of='cond', status=2)
    edit('--edit=inpaint', '--mask=half', '--resample=1', '--labels=7,1', '--variants=2', of='cond')
    assert np.load('out/samples.npz')['arr_1'].tolist() == [7, 7, 1, 1, 7, 7]
    edit('--edit=vary', '--guidance=0', of='cond')
    assert 'arr_1' not in np.load('out/samples.npz')


def refused():
    black, white, grey = np.zeros((8, 8)), np.full((8, 8), 255), np.full((8, 8), 100)
    colour = np.zeros((8, 8, 3))
    colour[:4, :, 0] = 255
    half = np.where(np.arange(8) < 4, 0, 255) + np.zeros((8, 1))
    inpaint = '--edit=inpaint'
    return {
        'no mask': ([inpaint], None, '--edit=inpaint needs --mask: half, box, lines, random'),
        'no images': ([inpaint, '--images='], None, '--edit=inpaint needs --images'),
        'size': ([inpaint, '--mask=m'], [half[:6]], 'holds a mask of 6x8 (HxW): the images have 8x8'),
        'empty': ([inpaint, '--mask=m'], [black], 'draws nothing anew'),
        'full': ([inpaint, '--mask=m'], [white], 'keeps nothing'),
        'grey': ([inpaint, '--mask=m'], [grey], 'has 64 grey pixels: make them black'),
        'colour': ([inpaint, '--mask=m'], [colour], 'holds a mask in colour'),
        'two of three': ([inpaint, '--mask=m'], [half, half], 'holds 2 masks: give one for all 3 of --images'),
        'third is empty': ([inpaint, '--mask=m'], [half, half, black], 'image 2 of it, draws nothing anew'),
        'share': ([inpaint, '--mask=random:1.5'], None, 'must lie between 0 and 1'),
        'no share': ([inpaint, '--mask=random'], None, 'write random:0.5'),
        'share of box': ([inpaint, '--mask=box:0.5'], None, 'write box or box:LEFT,TOP,RIGHT,BOTTOM'),
        'nothing of box': ([inpaint, '--mask=box:'], None, 'write box or box:LEFT,TOP,RIGHT,BOTTOM'),
        'share of half': ([inpaint, '--mask=half:0.5'], None, 'write half'),
        'wide box': ([inpaint, '--mask=box:2,0,9,4'], None, 'LEFT < RIGHT <= 8 and 0 <= TOP < BOTTOM <= 8'),
        'box of all': ([inpaint, '--mask=box:0,0,8,8'], None, 'keeps nothing'),
        'factor': (['--edit=upscale', '--factor=3'], None, 'a factor of 3 does not divide images of 8x8'),
        'large images': (['--edit=upscale', '--factor=2'], None, 'takes images of 4x4 here, and images has one of 8x8'),
        'grey network': (['--edit=colorize'], None, 'colour has 3 channels, and these images have 1'),
        'no strength': (['--edit=vary', '--strength=0'], None, '--strength=0 changes nothing'),
        'too strong': (['--edit=vary', '--strength=1.5'], None, 'strength'),
        'mask of vary': (['--edit=vary', '--mask=half'], None, '--mask is for inpaint: --edit=vary changes the whole'),
        'mask of upscale': (['--edit=upscale', '--mask=half'], None, '--mask is for inpaint'),
        'colour images': (['--edit=vary', '--images=m'], [colour], 'those of m are in colour: --channels=1'),
    }


@pytest.mark.parametrize('case', refused())
def test_what_does_not_fit_is_refused_in_one_line(edit, case):
    flags, pictures, message = refused()[case]
    if pictures is not None:
        save('m', pictures)
    assert message in edit(*flags, status=2)


def test_masks_of_other_names_and_points_are_refused(edit):
    os.makedirs('masks')
    for name in '0', '1', '3':
        Image.fromarray((np.arange(64).reshape(8, 8) % 2 * 255).astype(np.uint8)).save(f'masks/{name}.png')
    assert 'has 3 for 2 of images' in edit('--edit=inpaint', '--mask=masks', status=2)
    assert 'the checkpoint draws points' in edit('--edit=vary', of='points', status=2)
