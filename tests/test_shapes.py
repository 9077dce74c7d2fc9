"""Images whose height and width differ, from the files through networks and samplers to pictures, scores and exports.

Every size here has H != W, so that an exchange of the two anywhere fails.
"""

import json
import os

import diffusers
import numpy as np
import pytest
import torch
from absl.testing import flagsaver
from conftest import TINY, largest_error
from image_files import exif
from PIL import Image
from pipelines import share_noise
from runs import config_of, differences, load, one_line
from sklearn.datasets import load_digits

import dataset
import interop
import main
from dataset import loader
from diffusion import GaussianDiffusionSampler
from draw import picture
from model import UNet
from networks.context_unet import ContextUNet
from run import compiling, inputs, reference
from run.config import replace
from score.classifier import cache_classifier
from score.statistics import load_statistics

H, W = 8, 16
WIDE = [*(flag for flag in TINY if not flag.startswith(('--dataset', '--img_size'))), f'--img_size={H}x{W}']
NETS = {'unet': ['--ch_mult=1,2', '--attn=0,1'], 'context_unet': ['--net=context_unet', '--ch_mult=1,1', '--cond']}
CLASSIFIER = '--feature_net=classifier'


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Return a folder with pairs/, 100 pairs of digits of 8x16 in folders named by the left one, and a run per net."""
    root = tmp_path_factory.mktemp('shapes')
    digits, labels = load_digits(return_X_y=True)
    digits = (digits.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    for i in range(100):
        folder = root / 'pairs' / str(labels[i])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.hstack([digits[i], digits[i + 100]])).save(folder / f'{i:03d}.png')
    for net, flags in NETS.items():
        argv = ['main.py', *WIDE, *flags, '--train', f'--dataset={root / "pairs"}', f'--logdir={root / net}']
        argv += ['--norandom_flip', '--sample_step=4', '--preview_steps=0', '--lr=0.01', '--ema_decay=0.5']
        with flagsaver.flagsaver():
            assert main.main(main.parse_flags(argv)) == 0
    return root


@pytest.fixture(params=NETS)
def logdir(request, root):
    return root / request.param


def pairs(root):
    """Return the pairs as they lie in the files, uint8 [100, H, W], in the order of their names."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted((root / 'pairs').rglob('*.png'))])


# --- sizes as they are typed and kept


@pytest.mark.parametrize('typed, size', [('8x16', [8, 16]), ('16x8', [16, 8]), ('16x16', 16), ('16', 16)])
def test_a_size_is_a_number_or_height_and_width(typed, size):
    config = config_of(f'--img_size={typed}')
    assert config.img_size == size
    line = f'--img_size={"16" if size == 16 else typed}\n'
    assert line in main.flagfile(config)
    assert config_of(line.strip()).img_size == size


def test_a_checkpoint_of_other_sizes_is_refused(logdir, cli):
    assert load(logdir)['config']['img_size'] == [H, W]
    for size, status in (('8x16', 0), ('16x8', 2), ('16', 2)):
        code, _, error = cli('--sample', f'--logdir={logdir}', '--num_images=1', f'--img_size={size}')
        assert code == status, error
        if status:
            assert f'--img_size={size} (trained with 8x16)' in one_line(error)


# --- data


SQUARE = np.arange(64, dtype=np.uint8).reshape(8, 8)


@pytest.mark.parametrize('background, colour', [('white', 255), ('black', 0)])
@pytest.mark.parametrize('size', [(8, 16), (16, 8)])
def test_an_image_is_cropped_padded_or_stretched(tmp_path, size, background, colour):
    tall = size == (16, 8)

    def turned(image):  # for 16x8, all is as for 8x16 with rows in place of columns
        return image.T if tall else image

    rows = np.repeat(np.arange(0, 200, 25, dtype=np.uint8)[:, None], 8, axis=1)  # 8x8, each row of one shade
    long = np.random.default_rng(0).integers(0, 255, (20, 16), dtype=np.uint8)
    for name, image in (('rows', rows), ('long', long), ('square', SQUARE)):
        (tmp_path / name).mkdir()
        Image.fromarray(turned(image)).save(tmp_path / name / 'a.png')

    def fitted(name, fit):
        data = dataset.load(str(tmp_path / name), '', list(size), background=background, fit=fit)
        image = data[0][0].numpy()
        assert image.shape == (1, *size) and data.nbytes == 128
        return turned(image[0]), str(data)

    image, said = fitted('long', 'crop')
    assert np.array_equal(image, long[6:14])
    assert f'cropped and resized to {size[0]}x{size[1]} (HxW)' in said
    image, said = fitted('square', 'pad')
    assert np.array_equal(image, np.pad(SQUARE, ((0, 0), (4, 4)), constant_values=colour))
    assert f'of 8x8, grey, padded in {background} and resized to {size[0]}x{size[1]} (HxW)' in said
    image, said = fitted('rows', 'stretch')
    assert np.array_equal(image, np.repeat(rows[:, :1], 16, axis=1))
    assert f'stretched and resized to {size[0]}x{size[1]} (HxW)' in said


def test_images_of_the_size_asked_for_stay_as_they_are(root):
    for fit in dataset.FITS:
        data = dataset.load(str(root / 'pairs'), '', [H, W], fit=fit)
        assert str(data) == '100 images of 8x16 (HxW), grey, 10 classes: 0 1 2 ... 9'
        assert np.array_equal(loader.decode_all(data)[0][:, 0], pairs(root))
        assert np.array_equal(next(loader.in_order(data, 0, 0, 100))[0][:, 0], pairs(root))


@pytest.mark.parametrize('fit', dataset.FITS)
def test_a_named_set_of_squares_is_fitted_as_a_folder_is(fit, tmp_path):
    named = dataset.load('digits', '', [H, W], fit=fit)
    for i in range(10):
        pixels = loader.pick(dataset.load('digits', '', 8), torch.tensor([i]))[0, 0]
        Image.fromarray(pixels.numpy()).save(tmp_path / f'{i}.png')
    files = dataset.load(str(tmp_path), '', [H, W], fit=fit)
    for i in range(10):
        assert torch.equal(named[i][0], files[i][0])
    said = {'crop': 'cropped', 'pad': 'padded in white', 'stretch': 'stretched'}[fit]
    assert f'1,438 images of 8x8, grey, {said} and resized to 8x16 (HxW)' in str(named)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation, size', [(1, [8, 16]), (3, [8, 16]), (6, [16, 8])])
def test_the_size_of_a_rotated_image_is_as_it_is_seen(tmp_path, kind, orientation, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8))
    image.save(tmp_path / f'a.{kind}', kind, exif=b'Exif\0\0' * (kind != 'TIFF') + exif(orientation))
    data = dataset.load(str(tmp_path), '', size)
    assert str(data) == f'1 image of {size[0]}x{size[1]} (HxW), colour, no classes' and not data.lies_across()


@pytest.mark.parametrize('fit', dataset.FITS)
def test_height_and_width_in_the_other_order_are_noticed(root, fit):
    config = config_of(f'--dataset={root / "pairs"}', '--img_size=16x8', f'--fit={fit}')
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr(inputs.logging, 'warning', lambda text, *values: said.append(text % values))
        inputs.dataset(config)
        for size in ([8, 16], 16, [4, 6]):
            inputs.dataset(replace(config, img_size=size))
    (line,) = said
    assert 'each of its images is wider than high, and --img_size=16x8 is HEIGHTxWIDTH' in line
    assert line.endswith('if the other order is meant, say --img_size=8x16')


def test_caches_of_other_shapes_and_fits_have_other_names(root):
    def found(*argv):
        config = config_of(*argv, CLASSIFIER)
        return reference.statistics_path(config), inputs.identity(config)

    named, folder = '--dataset=digits', f'--dataset={root / "pairs"}'
    fits = ['--fit=crop'], ['--fit=stretch'], ['--fit=pad'], ['--fit=pad', '--background=black']
    for data in (named, folder):
        made = [found(data, f'--img_size={size}', *fit) for size in ('8x16', '16x8') for fit in fits]
        assert len({name for name, _ in made}) == len({json.dumps(identity) for _, identity in made}) == 8
    path, identity = found(named, '--img_size=8x16', '--fit=pad')
    assert path == os.path.join('stats', 'digits8x16-pad-white.train.classifier.npz')
    assert identity == {'from': 'digits-pad-white', 'split': 'train', 'img_size': [8, 16], 'channels': 1}
    # Those of square sets, which lie on people's disks.
    path, identity = found(named, '--img_size=8', '--background=black')
    assert path == os.path.join('stats', 'digits.train.classifier.npz')
    assert identity == {'from': 'digits', 'split': 'train', 'img_size': 8, 'channels': 1}


# --- networks


def test_each_side_is_halved():
    x, t = torch.randn(2, 1, 8, 24), torch.tensor([0, 5])
    nets = [UNet(10, 32, [1, 1, 2], [2], 1, 0.0, img_channels=1, img_size=(8, 24))]
    nets.append(ContextUNet(10, 32, [1, 1, 2], img_size=(8, 24)))
    for net in nets:
        assert net(x, t).shape == x.shape
    for size in ((8, 22), (22, 8)):
        for make in (
            lambda **options: UNet(10, 32, [1, 1, 2], [2], 1, 0.0, **options),
            lambda **options: ContextUNet(10, 32, [1, 1, 2], **options),
        ):
            with pytest.raises(ValueError, match=f'divisible by 4.*not {size[0]}x{size[1]}'):
                make(img_size=size)
    with pytest.raises(ValueError, match='a number or a pair'):
        UNet(10, 32, [1], [], 1, 0.0, img_size=(8, 8, 8))


def test_the_count_of_operations_is_of_the_shape():
    def flops(*size):
        return compiling.flops(config_of(*TINY, '--ch_mult=1,2', f'--img_size={"x".join(map(str, size))}'))

    counts = np.array([flops(8, width) for width in (8, 16, 24, 32)])
    assert np.diff(counts, 3) == 0 and (np.diff(counts, 2) > 0).all()  # c + a n + b n^2 for n pixels, with attention
    assert flops(8, 16) == flops(16, 8) != flops(8, 8)


# --- runs


def test_what_a_run_keeps_and_previews(logdir):
    state = load(logdir)
    assert state['x_T'].shape == (4, 1, H, W) and state['step'] == 4
    assert f'--img_size={H}x{W}\n' in (logdir / 'flagfile.txt').read_text()
    assert Image.open(logdir / 'sample' / '4.png').size == (2 * 8 * W + 9, 2 * 8 * H + 9)  # 2 columns, 2 rows


def test_a_run_goes_on_to_the_bits_of_an_unbroken_one(root, tmp_path, cli):
    argv = [*WIDE, '--train', f'--dataset={root / "pairs"}']
    assert cli(*argv, f'--logdir={tmp_path / "whole"}')[0] == 0
    for steps in (2, 4):
        assert cli(*argv, f'--logdir={tmp_path / "parts"}', f'--total_steps={steps}')[0] == 0
    whole, parts = (load(tmp_path / name) for name in ('whole', 'parts'))
    assert not list(differences(*({**s, 'config': {**s['config'], 'logdir': ''}} for s in (whole, parts))))


def test_samples_in_files_npz_and_grid(logdir, tmp_path, cli):
    argv = ['--sample', f'--logdir={logdir}', '--num_images=5', f'--out={tmp_path}', '--sample_batch_size=2']
    assert cli(*argv)[0] == 0
    images = np.load(tmp_path / 'samples.npz')['arr_0']
    assert images.shape == (5, H, W, 1) and images.std() > 10
    for i in range(5):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f'{i:06d}.png')), images[i, :, :, 0])
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'grid.png')), _grid(images[..., 0], 2))
    assert 'all drawn before' in cli(*argv)[1]


def _grid(images, columns, scale=8, gap=picture.GAP):
    """Return a grid, [., ., 3], of images [N, H, W] that fill its rows from the left, on white."""
    n, height, width = images.shape
    across, down = width * scale + gap, height * scale + gap
    page = np.full((-(-n // columns) * down + gap, columns * across + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * down + gap, i % columns * across + gap
        page[y : y + height * scale, x : x + width * scale] = np.kron(image, np.ones((scale, scale)))[..., None]
    return page


@pytest.mark.parametrize('size, n, columns', [((8, 16), 9, 3), ((8, 16), 50, 5), ((16, 8), 50, 10), ((8, 64), 3, 1)])
def test_a_grid_is_about_as_wide_as_high(size, n, columns):
    images = torch.randint(255, (n, 1, *size), dtype=torch.uint8)
    assert np.array_equal(np.asarray(picture.grid(images)), _grid(images[:, 0].numpy(), columns))


@pytest.mark.parametrize('size', [(8, 16), (16, 8)])
def test_a_table_has_a_name_beside_each_row_and_a_title_above_each_column(size):
    images = torch.randint(255, (4, 3, 1, *size), dtype=torch.uint8)
    page = np.asarray(picture.table(images / 127.5 - 1, ['a', 'b', 'c'], ['one', 'two', 'three', 'four'], group=2))
    grid = [_grid(images[i : i + 2].reshape(6, *size).numpy(), 3) for i in (0, 2)]
    height, width, _ = grid[0].shape
    left, top = page.shape[1] - picture.MARGIN - width, page.shape[0] - picture.MARGIN - 2 * height - picture.APART
    for i, block in enumerate(grid):
        y = top + i * (height + picture.APART)
        assert np.array_equal(page[y : y + height, left : left + width], block)
        for row in range(2):  # the name is dark, in the middle of its row
            middle = y + picture.GAP + (row + 0.5) * (size[0] * 8 + picture.GAP)
            dark = np.nonzero((page[y + row * (size[0] * 8 + 3) :][: size[0] * 8, :left] < 128).any((1, 2)))[0]
            assert abs(y + row * (size[0] * 8 + 3) + dark.mean() - middle) < 8
    for column in range(3):
        middle = picture.GAP + (column + 0.5) * (size[1] * 8 + picture.GAP)
        dark = np.nonzero((page[:top, left:] < 128).any((0, 2)))[0]
        assert (abs(dark - middle) < 12).any()


@pytest.mark.parametrize(
    'kind, rows, columns, group',
    [('progressive', 4, 9, 2), ('forward', 2, 9, 1), ('reconstruct', 2, 4, 1), ('interpolate', 4, 13, 1)],
)
def test_figures(root, tmp_path, cli, kind, rows, columns, group):
    argv = [f'--figure={kind}', f'--logdir={root / "unet"}', f'--out={tmp_path}', '--num_images=2']
    assert cli(*argv)[0] == 0
    page, across, down = np.asarray(Image.open(tmp_path / f'{kind}.png')), 8 * W + picture.GAP, 8 * H + picture.GAP
    groups = rows // group
    height = rows * down + groups * picture.GAP + (groups - 1) * picture.APART
    top, left = page.shape[0] - picture.MARGIN - height, page.shape[1] - picture.MARGIN - picture.GAP - columns * across
    assert 40 < top < 60 and 2 * picture.MARGIN < left < 120  # what titles and names take
    x = left + picture.GAP + (0 if kind != 'progressive' else (columns - 1) * across)
    tile = page[top + picture.GAP :, x:][: 8 * H, : 8 * W, 0]
    assert np.array_equal(tile, np.kron(tile[::8, ::8], np.ones((8, 8))))
    if kind != 'progressive':  # a real image comes first
        assert (pairs(root) == tile[::8, ::8]).all((1, 2)).any()


def test_nearest_images(root, tmp_path, cli, scored):
    argv = ['--figure=nearest', f'--logdir={root / "unet"}', f'--out={tmp_path}', CLASSIFIER, '--num_images=3']
    assert cli(*argv)[0] == 0
    page = np.asarray(Image.open(tmp_path / 'nearest.png'))[..., 0]
    right, below = 8 * W + picture.GAP, 8 * H + 2 * picture.GAP + picture.APART  # from one image to the next
    page = page[-picture.MARGIN - 3 * below + picture.APART + picture.GAP :, -picture.MARGIN - 3 * right :]
    tiles = [[page[i * below :, j * right :][: 8 * H : 8, : 8 * W : 8] for j in range(3)] for i in range(3)]
    tiles = np.array(tiles).astype(int)
    known = pairs(root).astype(int)
    for sample, in_pixels, in_features in tiles:
        assert np.array_equal(in_pixels, known[((known - sample) ** 2).sum((1, 2)).argmin()])
        assert (known == in_features).all((1, 2)).any()


# --- scores


@pytest.fixture
def scored(root, tmp_path, monkeypatch):
    """Enter a new folder with a classifier of the pairs that is quickly trained."""
    monkeypatch.chdir(tmp_path)
    images, labels = loader.decode_all(dataset.load(str(root / 'pairs'), '', [H, W]))
    config = config_of(f'--dataset={root / "pairs"}', f'--img_size={H}x{W}', CLASSIFIER)
    os.mkdir('stats')
    path = reference.statistics_path(config).replace('.train.classifier.npz', '.classifier.pt')
    cache_classifier(path, (images, labels, images, labels), steps=30)
    return reference.statistics_path(config)


def test_scores_of_a_run_and_of_its_samples(logdir, scored, cli):
    argv = [f'--logdir={logdir}', CLASSIFIER, '--num_images=20']
    status, out, error = cli('--eval', *argv)
    assert status == 0, error
    made = load_statistics(scored)
    assert f'against {scored}: 100 images of 8x16 (HxW), grey' in out and made.source['img_size'] == [H, W]
    assert Image.open(logdir / 'samples_ema.png').size == (4 * (8 * W + 3) + 3, 5 * (8 * H + 3) + 3)
    record = json.loads((logdir / 'eval.txt').read_text().splitlines()[-1])
    assert cli('--sample', *argv, '--out=drawn')[0] == 0
    compared = ['--eval', '--images=drawn/samples.npz', CLASSIFIER, f'--fid_cache={scored}', '--device=cpu']
    compared += [f'--img_size={H}x{W}', f'--dataset={made.source["from"]}']
    status, out, error = cli(*compared)
    assert status == 0 and '20 images of 8x16 (HxW), grey' in out, error
    fid = float(out.split('FID(classifier): ')[1].split(',')[0])
    assert fid == pytest.approx(record['FID(classifier)'], rel=0.02)  # images in bytes, and not
    images = np.load('drawn/samples.npz')['arr_0']
    np.savez('turned.npz', arr_0=images.transpose(0, 2, 1, 3))
    status, _, error = cli(*(word.replace('drawn/samples', 'turned') for word in compared))
    assert status == 1 and 'trained on images (1, 8, 16), got (1, 16, 8)' in one_line(error)


def test_bits_per_dim(logdir, cli, root):
    status, out, _ = cli('--nll', f'--logdir={logdir}', f'--test_dataset={root / "pairs"}', '--nll_steps=2')
    assert status == 0 and '100 images of test, 8 steps, an estimate from 2 terms' in out
    record = json.loads((logdir / 'nll.txt').read_text())
    assert record['n'] == 100 and 0 < record['bits_per_dim'] < 1000


# --- other programs


def test_an_export_draws_the_same_in_diffusers_and_comes_back(root, tmp_path, monkeypatch, cli):
    logdir = root / 'unet'
    argv = ['--export=diffusers', f'--logdir={logdir}', f'--out={tmp_path / "export"}', '--var_type=fixedsmall']
    assert cli(*argv)[0] == 0
    assert json.loads((tmp_path / 'export/unet/config.json').read_text())['sample_size'] == [H, W]
    assert '1x8x16 images' in (tmp_path / 'export/README.md').read_text()
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path / 'export')
    theirs.set_progress_bar_config(disable=True)
    share_noise(monkeypatch)
    drawn = theirs(3, num_inference_steps=8, output_type='np').images
    share_noise(monkeypatch)
    sampler = interop.from_pretrained(str(tmp_path / 'export'))
    x_0 = sampler(torch.randn(3, 1, H, W), noise=lambda x: torch.randn(x.shape))
    assert drawn.shape == (3, H, W, 1) and list(sampler.img_size) == [H, W]
    assert largest_error((x_0 / 2 + 0.5).clamp(0, 1), torch.from_numpy(drawn).permute(0, 3, 1, 2)) < 1e-4
    monkeypatch.undo()
    assert cli('--import_ckpt', tmp_path / 'export', f'--logdir={tmp_path / "back"}')[0] == 0
    back = load(tmp_path / 'back')
    assert back['config']['img_size'] == [H, W] and back['x_T'].shape[1:] == (1, H, W)
    assert not differences(back['net_model'], load(logdir)['ema_model'])


@pytest.mark.parametrize('kept, read', [([16, 16], 16), (16, 16), ([8, 16], [8, 16]), (None, 32)])
def test_sizes_of_diffusers(root, tmp_path, cli, kept, read):
    assert cli('--export=diffusers', f'--logdir={root / "unet"}', f'--out={tmp_path / "export"}')[0] == 0
    _keep(tmp_path / 'export', kept)
    assert cli('--import_ckpt', tmp_path / 'export', f'--logdir={tmp_path / "back"}')[0] == 0
    assert load(tmp_path / 'back')['config']['img_size'] == read


@pytest.mark.parametrize('kept', [[8], [8, 16, 24], [8, '16'], [0, 8], 'x', 0, 8.5])
def test_a_broken_size_of_diffusers_is_one_line(root, tmp_path, cli, kept):
    assert cli('--export=diffusers', f'--logdir={root / "unet"}', f'--out={tmp_path / "export"}')[0] == 0
    _keep(tmp_path / 'export', kept)
    status, _, error = cli('--import_ckpt', tmp_path / 'export', f'--logdir={tmp_path / "back"}')
    assert status == 1 and 'sample_size must be a number of pixels or a list of two' in one_line(error)
    assert not (tmp_path / 'back').exists()


def _keep(export, sample_size):
    path = export / 'unet' / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'sample_size': sample_size}))


def test_the_code_on_a_card_of_a_network_with_labels_is_of_the_shape():
    config = config_of(*WIDE)
    flags = {**vars(config), 'num_classes': 3}
    assert 'x = torch.randn(len(y), 1, 8, 16)' in interop.drawing_code.drawing_code(flags)


def test_a_safetensors_file_keeps_the_size(root, tmp_path, cli):
    path = tmp_path / 'model.safetensors'
    assert cli('--export=safetensors', f'--logdir={root / "unet"}', f'--out={path}')[0] == 0
    assert cli('--import_ckpt', path, f'--logdir={tmp_path / "back"}')[0] == 0
    assert load(tmp_path / 'back')['config']['img_size'] == [H, W]


def test_a_sampler_in_python_takes_either():
    assert [GaussianDiffusionSampler(None, 0.1, 0.2, 4, size).img_size for size in (8, (8, 16))] == [8, (8, 16)]
