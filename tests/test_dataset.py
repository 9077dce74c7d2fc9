"""Data sets: what is decoded, in which order it comes, and the message about data that cannot be read."""

import io
import pickle
import zipfile

import lmdb
import numpy as np
import pytest
import torch
import torchvision
from conftest import TINY
from image_files import zip_of
from original_files import write_cifar10, write_mnist
from PIL import Image
from runs import one_line

import dataset
import score
from dataset import DataError, loader

CPU = torch.device('cpu')


def first_batches(images, n, step=0, batch_size=4, seed=0, flip=False, workers=0):
    stream = loader.batches(images, batch_size, seed, step, CPU, flip, workers)
    return [next(stream) for _ in range(n)]


# --- order and values


def test_an_epoch_is_a_permutation_and_a_function_of_seed_and_epoch():
    digits = dataset.load('digits', '', 8)
    order = loader.index_batches(len(digits), 100, 0, 0)
    epochs = [torch.cat([next(order) for _ in range(14)]) for _ in range(2)]
    assert all(len(epoch.unique()) == 1400 for epoch in epochs)
    assert not torch.equal(*epochs)
    again = loader.index_batches(len(digits), 100, 0, 14)
    assert torch.equal(next(again), epochs[1][:100])
    assert not torch.equal(next(loader.index_batches(len(digits), 100, 1, 0)), epochs[0][:100])


def test_batches_from_a_later_step_continue_the_same_sequence(folder_of_images):
    images = dataset.load(str(folder_of_images), '', 8)
    all_of_them = first_batches(images, 8)
    for (x, y), (x_late, y_late) in zip(all_of_them[5:], first_batches(images, 3, step=5), strict=True):
        assert torch.equal(x, x_late) and torch.equal(y, y_late)


def test_streamed_batches_equal_resident_ones(folder_of_images, monkeypatch):
    images = dataset.load(str(zip_of(folder_of_images, folder_of_images.parent / 'images.zip')), '', 8)
    resident = first_batches(images, 5)
    monkeypatch.setattr(loader, 'RESIDENT_BYTES', 0)
    for workers in (0, 2):
        for (x, y), (x_streamed, y_streamed) in zip(resident, first_batches(images, 5, workers=workers), strict=True):
            assert torch.equal(x, x_streamed) and torch.equal(y, y_streamed)


def test_pixels_are_scaled_to_minus_one_and_one(tmp_path):
    for name, value in (('black', 0), ('white', 255), ('grey', 51)):
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(tmp_path / f'{name}.png')
    ((x, y),) = first_batches(dataset.load(str(tmp_path), '', 8), 1, batch_size=3)
    assert y is None
    np.testing.assert_allclose(sorted(x.mean(dim=(1, 2, 3)).tolist()), [-1, 51 / 127.5 - 1, 1], atol=1e-6)


def test_half_of_the_images_are_flipped_by_torchs_generator():
    digits = dataset.load('digits', '', 8)
    torch.manual_seed(0)
    ((flipped, _),) = first_batches(digits, 1, batch_size=1000, flip=True)
    ((plain, _),) = first_batches(digits, 1, batch_size=1000)
    mirrored = (flipped == plain.flip(3)).all(dim=(1, 2, 3))
    assert (mirrored | (flipped == plain).all(dim=(1, 2, 3))).all()
    assert 430 < mirrored.sum() < 570
    torch.manual_seed(0)
    assert torch.equal(first_batches(digits, 1, batch_size=1000, flip=True)[0][0], flipped)


# --- named data sets, from small files in their own formats


def test_digits_are_the_real_ones():
    digits = dataset.load('digits', '', 8)
    assert (len(digits), digits.channels, digits.num_classes) == (1438, 1, 10)
    assert len(dataset.load('digits', '', 8, 'test')) == 359
    image, label = digits[0]
    assert image.shape == (1, 8, 8) and image.dtype == torch.uint8 and label == 0
    assert image.max() > 230


def write_celeba(root, monkeypatch):
    folder = root / 'celeba'
    (folder / 'img_align_celeba').mkdir(parents=True)
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[39:179, 19:159] = 255  # the centre of 140x140 is white, its border black
    names = [f'{i:06d}.png' for i in range(1, 21)]
    for name in names:
        Image.fromarray(pixels).save(folder / 'img_align_celeba' / name)
    (folder / 'list_eval_partition.txt').write_text(''.join(f'{name} 0\n' for name in names))
    for file, columns in (('identity_CelebA', 1), ('list_bbox_celeba', 4), ('list_landmarks_align_celeba', 10)):
        header = '' if columns == 1 else f'20\n{" ".join(map(str, range(columns)))}\n'
        (folder / f'{file}.txt').write_text(header + ''.join(f'{name}{" 1" * columns}\n' for name in names))
    (folder / 'list_attr_celeba.txt').write_text('20\na b\n' + ''.join(f'{name} 1 -1\n' for name in names))
    monkeypatch.setattr(torchvision.datasets.CelebA, '_check_integrity', lambda self: True)


def write_lsun(root, folder, n=20):
    path = root / 'lsun' / folder
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=2**22) as env, env.begin(write=True) as transaction:
        for i in range(n):
            file = path.parent / 'image.png'
            Image.fromarray(np.full((30, 40, 3), 10 * i, np.uint8)).save(file)
            transaction.put(f'{i:03d}'.encode(), file.read_bytes())


def write(name, tmp_path, monkeypatch):
    """Write the files of a named data set of 20 images."""
    if name == 'cifar10':
        write_cifar10(tmp_path, monkeypatch)
    elif name in ('mnist', 'fashion_mnist'):
        write_mnist(tmp_path, {'mnist': 'MNIST', 'fashion_mnist': 'FashionMNIST'}[name])
    elif name == 'celeba':
        write_celeba(tmp_path, monkeypatch)
    else:
        category = name.removeprefix('lsun_')
        write_lsun(tmp_path, category if category == 'cat' else f'{category}_train_lmdb')


CIFAR10 = '10 classes: airplane automobile bird ... truck'
NAMED = [
    ('cifar10', 3, 10, f'20 images of 32x32, colour, resized to 16x16, {CIFAR10}'),
    ('mnist', 1, 10, '20 images of 28x28, grey, resized to 16x16, 10 classes: 0 1 2 ... 9'),
    ('fashion_mnist', 1, 10, '20 images of 28x28, grey, resized to 16x16, 10 classes: T-shirt/top Trouser Pullover'),
    ('celeba', 3, 0, '20 images of 218x178 (HxW), colour, cropped and resized to 16x16, no classes'),
    ('lsun_bedroom', 3, 0, '20 images of 30x40 (HxW), colour, cropped and resized to 16x16, no classes'),
    ('lsun_church_outdoor', 3, 0, '20 images of 30x40 (HxW), colour, cropped and resized to 16x16, no classes'),
    ('lsun_cat', 3, 0, '20 images of 30x40 (HxW), colour, cropped and resized to 16x16, no classes'),
]


@pytest.mark.parametrize('name, channels, classes, line', NAMED)
def test_named_data_set(name, channels, classes, line, tmp_path, monkeypatch):
    write(name, tmp_path, monkeypatch)
    images = dataset.load(name, str(tmp_path), 16)
    assert (len(images), images.channels, images.num_classes) == (20, channels, classes)
    assert str(images).startswith(line)
    ((x, y),) = first_batches(images, 1)
    assert x.shape == (4, channels, 16, 16) and (y is None) == (classes == 0)
    for asked in (1, 3):
        assert dataset.load(name, str(tmp_path), 16, channels=asked)[0][0].shape == (asked, 16, 16)
    if name == 'celeba':
        assert x.min() > 0.99  # the centre crop leaves nothing of the black border


def test_an_lmdb_is_read_by_several_at_once_and_by_forked_workers(tmp_path, monkeypatch):
    write('lsun_cat', tmp_path, monkeypatch)
    train, again = (dataset.load('lsun_cat', str(tmp_path), 16) for _ in range(2))
    x, _ = train.__getitems__([3])
    assert torch.equal(x, again.__getitems__([3])[0])
    resident = first_batches(train, 5)
    monkeypatch.setattr(loader, 'RESIDENT_BYTES', 0)
    for (x, _), (x_streamed, _) in zip(resident, first_batches(train, 5, workers=2), strict=True):
        assert torch.equal(x, x_streamed)


def test_all_data_sets_reach_a_process_that_is_spawned(tmp_path, monkeypatch, folder_of_images):
    write('lsun_cat', tmp_path, monkeypatch)
    for name in ('cifar10', 'mnist', 'celeba'):
        write(name, tmp_path, monkeypatch)
    zipped = zip_of(folder_of_images, tmp_path / 'images.zip')
    names = 'lsun_cat', 'cifar10', 'mnist', 'celeba', 'digits', str(folder_of_images), str(zipped), 'moons'
    sets = [dataset.load(name, str(tmp_path), 8) for name in names]
    for data in sets:  # first read from each, which opens its database or archive here
        data.__getitems__([3])
    for data in (pickle.loads(pickle.dumps(data)) for data in sets):
        data.__getitems__([3])
    # Load all of them in one process, since it takes seconds to start.
    spawned = torch.utils.data.DataLoader(
        Several(sets),
        batch_size=None,
        num_workers=1,
        multiprocessing_context='spawn',
        worker_init_fn=loader._leave_signals_to_parent,
    )
    with loader._without_its_handler():  # else a worker that a later test kills would end any test
        spawned = iter(spawned)
    for data, (x, y) in zip(sets, spawned, strict=True):
        x_here, y_here = data.__getitems__([3, 5])
        assert torch.equal(x, x_here) and (y is None if y_here is None else torch.equal(y, y_here))


class Several(torch.utils.data.Dataset):
    """A data set whose items are batches, one from each of several data sets."""

    def __init__(self, sets):
        self.sets = sets

    def __len__(self):
        return len(self.sets)

    def __getitem__(self, i):
        return self.sets[i].__getitems__([3, 5])


# --- folders and zips


def test_folder_and_zip_give_the_same_images_and_classes(folder_of_images):
    from_folder = dataset.load(str(folder_of_images), '', 8)
    from_zip = dataset.load(str(zip_of(folder_of_images, folder_of_images.parent / 'images.zip')), '', 8)
    assert from_folder.items.classes == from_zip.items.classes == ['cat', 'dog']
    for a, b in zip(loader.decode_all(from_folder), loader.decode_all(from_zip), strict=True):
        assert torch.equal(a, b)
    assert loader.decode_all(from_folder)[1].tolist().count(1) == 7


def test_mixed_sizes_are_centre_cropped_and_resized_with_antialiasing(tmp_path):
    stripes = np.zeros((64, 96, 3), np.uint8)
    stripes[:, ::2] = 255  # too fine for the target: without antialiasing it would stay black or white
    stripes[:, :16] = stripes[:, -16:] = 7  # outside the largest centred square
    Image.fromarray(stripes).save(tmp_path / 'a.png')
    image, _ = dataset.load(str(tmp_path), '', 8)[0]
    assert ((image > 110) & (image < 145)).all()


@pytest.mark.parametrize(
    'mode, channels', [('L', 1), ('1', 1), ('I;16', 1), ('RGB', 3), ('RGBA', 3), ('P', 3), ('CMYK', 3)]
)
def test_colour_modes(tmp_path, mode, channels):
    if mode == 'I;16':
        Image.fromarray(np.full((8, 8), 128 * 256, np.uint16)).save(tmp_path / 'a.tif')
    else:
        Image.new('RGB', (8, 8), (128, 128, 128)).convert(mode).save(tmp_path / 'a.tif')
    images = dataset.load(str(tmp_path), '', 8)
    assert images.channels == channels
    assert images[0][0].float().mean().item() == pytest.approx(128, abs=2 if mode != '1' else 128)


def test_images_in_the_root_have_no_labels_and_hidden_files_are_no_images(tmp_path):
    for name in ('a.png', 'b.JPG', '.hidden.png', '__MACOSX/c.png', 'notes.txt', 'cat/d.png'):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new('RGB', (8, 8)).save(path, format='PNG')
    images = dataset.load(str(tmp_path), '', 8)
    assert images.items.names == ['a.png', 'b.JPG', 'cat/d.png'] and images.num_classes == 0
    assert len(dataset.load(str(tmp_path / '.hidden.png'), '', 8)) == 1  # it is named itself


def test_a_folder_around_those_of_the_classes_is_no_class(tmp_path):
    folder = tmp_path / 'set'
    for name in ('photos/cat/a.png', 'photos/cat/young/b.png', 'photos/dog/c.png'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(folder / name)
    for path in (folder, zip_of(folder, tmp_path / 'set.zip')):
        images = dataset.load(str(path), '', 8)
        assert images.classes == ['cat', 'dog'] and [images[i][1] for i in range(3)] == [0, 0, 1]
    Image.new('RGB', (8, 8)).save(folder / 'photos' / 'd.png')
    assert dataset.load(str(folder), '', 8).classes == ['photos']


def test_files_of_formats_that_are_not_read_are_counted(tmp_path, caplog):
    for name in ('a.jfif', 'b.jpe', 'c.HEIC', 'd.avif', 'notes.txt'):
        Image.new('RGB', (8, 8)).save(tmp_path / name, format='JPEG')
    for path in (tmp_path, zip_of(tmp_path, tmp_path.with_suffix('.zip'))):
        assert len(dataset.load(str(path), '', 8)) == 2
        assert f'{path}: leaving out 2 files of formats that are not read, such as c.HEIC' in caplog.text


# --- what cannot be read


def test_folders_of_splits_are_no_classes(tmp_path):
    for name in ('train/cat/a.png', 'Val/cat/b.png', 'other/c.png'):
        (tmp_path / 'set' / name).parent.mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(tmp_path / 'set' / name)
    assert dataset.load(str(tmp_path / 'set'), '', 8).classes == ['Val', 'other', 'train']
    (tmp_path / 'set' / 'other' / 'c.png').unlink()
    for path in (tmp_path / 'set', zip_of(tmp_path / 'set', tmp_path / 'set.zip')):
        with pytest.raises(DataError, match='holds the folders Val train, which are splits and no classes: name one'):
            dataset.load(str(path), '', 8)
    assert dataset.load(str(tmp_path / 'set' / 'train'), '', 8).classes == ['cat']


@pytest.mark.parametrize('kind', ['missing', 'empty folder', 'empty zip', 'no zip'])
def test_a_path_without_images_is_named(tmp_path, kind):
    path = tmp_path / 'data'
    if kind == 'empty folder':
        path.mkdir()
    elif kind == 'empty zip':
        zipfile.ZipFile(path, 'w').close()
    elif kind == 'no zip':
        path.write_bytes(b'PK nothing')
    with pytest.raises(DataError, match=str(path)) as caught:
        dataset.load(str(path), '', 8)
    assert '\n' not in str(caught.value)


def test_an_error_without_a_text_is_named(folder_of_images, monkeypatch):
    def fail(*_):
        raise EOFError

    images = dataset.load(str(folder_of_images), '', 8)
    monkeypatch.setattr(dataset.images, 'decode', fail)
    with pytest.raises(DataError, match=r'cat/0\.png cannot be decoded \(EOFError\)'):
        images[0]


def test_a_data_set_smaller_than_a_batch_is_refused(folder_of_images):
    with pytest.raises(DataError, match='--batch_size=13 is more than the 12 images'):
        first_batches(dataset.load(str(folder_of_images), '', 8), 1, batch_size=13)


def test_nothing_is_made_for_a_data_set_smaller_than_a_batch(tmp_path, cli, folder_of_images):
    argv = [*TINY, '--train', f'--dataset={folder_of_images}', '--batch_size=13', f'--logdir={tmp_path / "run"}']
    status, _, error = cli(*argv)
    assert status == 1 and '--batch_size=13 is more than the 12 images there are' in one_line(error)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('mode', ['--train', '--stats'])
def test_it_is_said_what_a_data_set_is(tmp_path, monkeypatch, cli, mode):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(score.classifier.cache_classifier.__kwdefaults__, 'steps', 2)
    status, _, error = cli(*TINY, mode, '--feature_net=classifier', '--logdir=run')
    assert status == 0 and 'digits, train: 1,438 images of 8x8, grey, 10 classes: 0 1 2 ... 9' in error


def test_points_have_no_channels_to_choose(tmp_path):
    with pytest.raises(DataError, match='--channels=3 is for images: moons is a set of points'):
        dataset.load('moons', '', 0, channels='3')
    assert str(dataset.load('moons', '', 0)) == '10,000 points, 2 classes: 0 1'


def test_an_empty_database_is_named(tmp_path):
    write_lsun(tmp_path, 'cat', 0)
    with pytest.raises(
        DataError, match='open lsun_cat in .*: the database is empty; without a connection, put cat, un'
    ):
        str(dataset.load('lsun_cat', str(tmp_path), 16))


def test_a_file_that_was_unpacked_in_part_is_to_be_removed(tmp_path):
    write_mnist(tmp_path, 'MNIST')
    path = tmp_path / 'MNIST' / 'raw' / 'train-images-idx3-ubyte'
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match='put train-images-idx3-ubyte.gz, .*, and nothing else, into .*/MNIST/raw'):
        dataset.load('mnist', str(tmp_path), 28)


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError('no route to host\nand more')

    monkeypatch.setattr(torchvision.datasets.mnist, 'download_and_extract_archive', fail)
    monkeypatch.setattr(torchvision.datasets.MNIST, 'mirrors', ['http://127.0.0.1:9/'])
    with pytest.raises(DataError, match='cannot download or open mnist') as caught:
        dataset.load('mnist', str(tmp_path), 28)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['cifar10', 'mnist', 'fashion_mnist', 'celeba', 'lsun_church_outdoor', 'lsun_cat'])
def test_without_a_connection_files_and_folder_are_named(tmp_path, monkeypatch, name):
    def fail(*_, **__):
        raise OSError('no route to host')

    for module in (torchvision.datasets.mnist, torchvision.datasets.cifar):
        monkeypatch.setattr(module, 'download_and_extract_archive', fail)
    monkeypatch.setattr(torchvision.datasets.celeba, 'download_file_from_google_drive', fail)
    with pytest.raises(DataError, match='; without a connection, put .* of https?://') as caught:
        dataset.load(name, str(tmp_path), 28)
    said, kinds = str(caught.value), torchvision.datasets
    files = {
        'cifar10': [kinds.CIFAR10.filename],
        'mnist': [file for file, _ in kinds.MNIST.resources],
        'fashion_mnist': [file for file, _ in kinds.FashionMNIST.resources],
        'celeba': [file for _, _, file in kinds.CelebA.file_list],
        'lsun_church_outdoor': ['church_outdoor_train_lmdb', 'church_outdoor_val_lmdb'],
        'lsun_cat': ['cat'],
    }[name]
    assert all(file in said for file in files) and '\n' not in said
    folder = {'mnist': 'MNIST/raw', 'fashion_mnist': 'FashionMNIST/raw', 'cifar10': '', 'celeba': 'celeba'}
    assert said.endswith(f'into {(tmp_path / folder.get(name, "lsun"))}')


# --- npz


def npz(path, array, version=(1, 0)):
    with zipfile.ZipFile(path, 'w') as archive, archive.open('arr_0.npy', 'w') as file:
        np.lib.format.write_array(file, array, version)
    return str(path)


@pytest.mark.parametrize('version', [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize('order', [np.ascontiguousarray, np.asfortranarray])
def test_an_npz_of_any_order_and_version_is_read_as_numpy_reads_it(tmp_path, order, version):
    array = np.random.default_rng(0).integers(0, 255, (300, 3, 4, 3), dtype=np.uint8)
    path = npz(tmp_path / 'a.npz', order(array), version)
    assert (np.load(path)['arr_0'] == array).all()
    n, batches = dataset.read_images(path)
    assert n == 300 and (torch.cat(list(batches)).permute(0, 2, 3, 1).numpy() == array).all()


def test_an_npz_whose_header_says_what_is_not_there_is_refused(tmp_path):
    array = np.zeros((300, 3, 4, 3), np.uint8)
    content = io.BytesIO()
    np.lib.format.write_array(content, array)
    plain = content.getvalue()
    for wrong, phrase in (
        (plain.replace(b'(300, 3,', b'(200, 3,'), 'arr_0 holds 10800 bytes, its header says 7200'),
        (plain.replace(b'(300, 3,', b'(900, 3,'), 'arr_0 holds 10800 bytes, its header says 32400'),
        (plain.replace(b'(300, 3,', b'(-99,-3,'), 'arr_0 must be uint8'),
        (plain.replace(b'|u1', b'|i1'), 'arr_0 must be uint8 .* not int8'),
        (plain.replace(b'False', b'12345'), 'no npz of images'),
        (plain.replace(b'NUMPY\x01', b'NUMPY\x04'), r'no npz of images .*: format \(4, 0\) of npy'),
    ):
        assert wrong != plain
        with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
            archive.writestr('arr_0.npy', wrong)
        with pytest.raises(DataError, match=phrase) as caught:
            dataset.read_images(str(tmp_path / 'a.npz'))
        assert '\n' not in str(caught.value)


# --- points


@pytest.mark.parametrize('name, num_classes', [('s_curve', 0), ('moons', 2), ('circles', 2), ('swiss_roll', 0)])
def test_points(name, num_classes):
    train, again, test = (dataset.load(name, '', 0, split) for split in ('train', 'train', 'test'))
    assert (len(train), train.channels, train.num_classes) == (10000, 2, num_classes)
    assert torch.equal(train.x, again.x) and not torch.equal(train.x, test.x)
    x, y = loader.decode_all(train)
    assert torch.equal(x, train.x) and x.dtype == torch.float32
    assert (y is None) if not num_classes else (y.bincount().tolist() == [5000, 5000] and y.dtype == torch.int64)
    assert 0.05 < x.std() < 0.2 and x.abs().max() < 0.5 and x.mean(0).abs().max() < 0.03  # same scale, centred


def test_the_s_curve_is_scikit_learns():
    from sklearn.datasets import make_s_curve

    expected, _ = make_s_curve(10**4, noise=0.1, random_state=0)
    np.testing.assert_allclose(dataset.load('s_curve', '', 0).x, expected[:, [0, 2]] / 10, atol=1e-7)


def test_batches_of_points_are_left_as_they_are():
    data = dataset.load('moons', '', 0)
    stream = loader.batches(data, 4000, 0, 0, torch.device('cpu'), True, 0)
    order = loader.index_batches(10000, 4000, 0, 0)
    for _ in range(3):  # into the second epoch
        (x, y), chosen = next(stream), next(order)
        assert torch.equal(x, data.x[chosen]) and torch.equal(y, data.y[chosen])
