"""--images and --dataset read the samples in a folder that --sample wrote, and refuse them if mixed with others."""

import shutil

import numpy as np
import pytest
from conftest import TINY
from PIL import Image
from runs import one_line

import dataset
from dataset import DataError


@pytest.fixture
def samples(tmp_path):
    """Write the files that --sample makes for 12 images, in the folder of a run."""
    folder = tmp_path / 'run' / 'samples'
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f'{i:06d}.png')
    Image.new('L', (50, 50)).save(folder / 'grid.png')
    np.savez(folder / 'samples.npz', arr_0=pixels[..., None])
    (folder / 'samples.json').write_text('{}')
    return folder


def names(path):
    return dataset.open_files(str(path)).names


NUMBERED = [f'{i:06d}.png' for i in range(12)]


@pytest.mark.parametrize('record', ['samples.json', None])
def test_the_grid_is_no_image(samples, tmp_path, caplog, record):
    caplog.set_level('INFO')
    if record is None:
        (samples / 'samples.json').unlink()
    assert names(samples) == NUMBERED and f'{samples}: leaving out grid.png' in caplog.text
    n, batches = dataset.read_images(str(samples))
    assert n == 12 and [tuple(batch.shape) for batch in batches] == [(12, 1, 8, 8)]
    assert len(dataset.load(str(samples), '', 8)) == 12
    packed = shutil.make_archive(tmp_path / 'packed', 'zip', samples.parent, 'samples')
    assert names(packed) == [f'samples/{name}' for name in NUMBERED]


def test_a_grid_of_others_is_an_image(tmp_path):
    for name in ('a.png', 'grid.png', 'mygrid.png'):
        Image.new('L', (8, 8)).save(tmp_path / name)
    assert names(tmp_path) == ['a.png', 'grid.png', 'mygrid.png']


def test_samples_among_others_are_refused(samples, tmp_path, cli):
    Image.new('L', (8, 8)).save(samples / 'mine.png')
    with pytest.raises(DataError, match=r'mine\.png is no sample, but lies among those of --sample'):
        names(samples)
    status, _, error = cli(*TINY, '--train', f'--dataset={samples}', f'--logdir={tmp_path}')
    assert status == 1 and 'mine.png is no sample' in one_line(error)


def test_the_picture_of_points_is_no_image(tmp_path):
    (tmp_path / 'samples.json').write_text('{}')
    Image.new('RGB', (8, 8)).save(tmp_path / 'figure.png')
    with pytest.raises(DataError, match=r'figure\.png is no sample'):
        names(tmp_path)


@pytest.mark.parametrize('picture', ['sample/1000.png', 'samples_ema.png', 'nll.png', 'figures/forward.png'])
def test_pictures_of_a_run_are_no_images(samples, picture):
    run = samples.parent
    assert names(run) == [f'samples/{name}' for name in NUMBERED]
    (run / picture).parent.mkdir(exist_ok=True)
    Image.new('L', (8, 8)).save(run / picture)
    assert picture in names(run)  # anyone's images may have such a name
    (run / 'ckpt.pt').write_bytes(b'')
    for folder, name in ((run, picture), (run.parent, f'run/{picture}')):
        with pytest.raises(DataError, match=f'{name} is a picture that a run has drawn'):
            names(folder)
    assert names(samples) == NUMBERED
