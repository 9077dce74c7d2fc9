"""Arrays of numpy, and the original files of MNIST and CIFAR-10, as data sets."""

import gzip
import os
import pickle
import shutil
import struct

import numpy as np
import pytest
import torch
import torchvision
from conftest import TINY
from original_files import write_cifar10, write_mnist
from runs import load, one_line

import dataset
from dataset import DataError, loader

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 6, 8, 3), dtype=np.uint8)
LABELS = np.arange(40) % 4
READ = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


def opened(path, split='train', size=(6, 8)):
    return dataset.load(str(path), '', list(size), split)


# --- arrays

ARRAYS = {
    'x and y': ({'x': PIXELS, 'y': LABELS}, '4 classes: 0 1 2 3, from x [N, H, W, C] and y'),
    'channels first': ({'x': PIXELS.transpose(0, 3, 1, 2), 'y': LABELS[:, None]}, 'from x [N, C, H, W] and y'),
    'unnamed': ({'arr_0': PIXELS, 'arr_1': LABELS.astype(np.uint8)}, 'from arr_0 [N, H, W, C] and arr_1'),
    'columns': ({'x': np.asfortranarray(PIXELS)}, 'no classes, from x [N, H, W, C]'),
    'a single one': ({'faces': PIXELS}, 'no classes, from faces [N, H, W, C]'),
    'texts': ({'x': PIXELS, 'y': np.array(['b', 'a10', 'b', 'a9'] * 10)}, '3 classes: a9 a10 b, from'),
}


@pytest.mark.parametrize('kind', ARRAYS)
@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_an_npz(tmp_path, kind, save):
    arrays, said = ARRAYS[kind]
    save(tmp_path / 'a.npz', **arrays)
    data = opened(tmp_path / 'a.npz')
    assert str(data).startswith('40 images of 6x8 (HxW), colour, ') and said in str(data)
    x, y = loader.decode_all(data)
    assert torch.equal(x, READ)
    if data.classes:
        (values,) = (arrays[name] for name in ('y', 'arr_1') if name in arrays)
        assert [data.classes[i] for i in y] == [str(value) for value in values.ravel()]


@pytest.mark.parametrize('order', [np.ascontiguousarray, np.asfortranarray])
def test_an_npy_is_mapped_and_reaches_a_process_that_is_spawned(tmp_path, order):
    np.save(tmp_path / 'a.npy', order(PIXELS.transpose(0, 3, 1, 2)))
    data = opened(tmp_path / 'a.npy')
    assert isinstance(data.items.x, np.memmap) and 'from [N, C, H, W]' in str(data)
    sent = pickle.dumps(data)
    assert len(sent) < PIXELS.nbytes
    for each in (data, pickle.loads(sent)):
        assert torch.equal(loader.decode_all(each)[0], READ)


def test_grey_arrays(tmp_path):
    for shape in ((40, 6, 8), (40, 6, 8, 1), (40, 1, 6, 8)):
        np.save(tmp_path / 'a.npy', PIXELS[..., 0].reshape(shape))
        data = opened(tmp_path / 'a.npy')
        assert data.channels == 1 and torch.equal(loader.decode_all(data)[0], READ[:, :1])


def test_an_npz_with_splits(tmp_path, cli):
    train, test = slice(0, 30), slice(30, 40)
    arrays = {'x_train': PIXELS[train], 'y_train': LABELS[train], 'x_test': PIXELS[test], 'y_test': LABELS[test]}
    np.savez(tmp_path / 'a.npz', **arrays)
    for split, part in (('train', train), ('test', test)):
        data = opened(tmp_path / 'a.npz', split)
        x, y = loader.decode_all(data)
        assert torch.equal(x, READ[part]) and y.tolist() == LABELS[part].tolist()
        assert str(data).endswith(f'from x_{split} [N, H, W, C] and y_{split}, of the splits train test')
    argv = [*TINY, f'--dataset={tmp_path / "a.npz"}', '--img_size=8x8', f'--logdir={tmp_path / "run"}']
    status, _, error = cli(*argv, '--train', '--cond', '--nll', '--nll_steps=2')
    assert status == 0 and 'a.npz, test: 10 images' in error, error
    assert load(tmp_path / 'run')['config']['class_names'] == ['0', '1', '2', '3']


WRONG = {
    'floats': ({'x': PIXELS / 255}, 'x is float64, which does not say what is black and white'),
    'other integers': ({'x': PIXELS.astype(int)}, 'x is int64, which does not say'),
    'rows': ({'x': PIXELS.reshape(40, -1)}, r'x is \[40, 144\], which is not clear'),
    'one image': ({'x': PIXELS[0]}, r'x is \[6, 8, 3\], which is not clear'),
    'one image, channels first': ({'x': PIXELS[0].transpose(2, 0, 1)}, r'x is \[3, 6, 8\], which is not clear'),
    'either order': ({'x': PIXELS[:, :3]}, r'x is \[40, 3, 8, 3\], which is not clear'),
    'four channels': ({'x': np.repeat(PIXELS, 2, 3)[..., :4]}, r'x is \[40, 6, 8, 4\], which is not clear'),
    'last axis': ({'x': PIXELS.transpose(1, 2, 3, 0)}, r'x is \[6, 8, 3, 40\], which is not clear'),
    'none': ({'x': PIXELS[:0]}, 'which is not clear'),
    'objects': ({'x': PIXELS, 'y': np.array([None] * 40)}, 'y holds objects of Python, which are never unpickled'),
    'images that are objects': ({'x': np.array([None] * 40)}, 'x holds objects of Python'),
    'two unknown names': ({'a': PIXELS, 'b': PIXELS}, 'holds a, b: name the images one of x, arr_0, x_train, x_test'),
    'both ways': ({'x': PIXELS, 'x_test': PIXELS}, 'holds x, x_test: name the images one of'),
    'float labels': ({'x': PIXELS, 'y': LABELS / 1}, r'the labels are float64 \[40\]'),
    'one-hot labels': ({'x': PIXELS, 'y': np.eye(4, dtype=int)[LABELS]}, r'the labels are int64 \[40, 4\]'),
    'few labels': ({'x': PIXELS, 'y': LABELS[1:]}, r'the labels are int64 \[39\]'),
    'negative labels': ({'x': PIXELS, 'y': LABELS - 1}, 'image 0 has the label -1'),
}


@pytest.mark.parametrize('kind', WRONG)
def test_arrays_that_are_not_clear_are_refused(tmp_path, kind):
    arrays, phrase = WRONG[kind]
    np.savez(tmp_path / 'a.npz', **arrays)
    with pytest.raises(DataError, match=rf'a\.npz.* {phrase}') as caught:
        opened(tmp_path / 'a.npz')
    assert '\n' not in str(caught.value)
    if list(arrays) == ['x']:
        np.save(tmp_path / 'a.npy', arrays['x'])
        with pytest.raises(DataError, match=r'a\.npy (is|holds)'):
            opened(tmp_path / 'a.npy')


def test_damaged_arrays_are_refused(tmp_path):
    np.save(tmp_path / 'a.npy', PIXELS)
    np.savez(tmp_path / 'a.npz', x=PIXELS)
    for name in ('a.npy', 'a.npz'):
        content = (tmp_path / name).read_bytes()
        for wrong in (b'', content[:40], content[:-99], content[:2000] + b'12' + content[2002:]):
            (tmp_path / name).write_bytes(wrong)
            if name == 'a.npy' and len(wrong) == len(content):
                continue  # it has no checksum
            with pytest.raises(DataError, match=rf'{name}.* (cannot be read|holds)'):
                opened(tmp_path / name)


# --- original files


def test_mnist_is_read_as_torchvision_reads_it(tmp_path):
    write_mnist(tmp_path, 'MNIST')
    raw = tmp_path / 'MNIST' / 'raw'
    packed, dotted = tmp_path / 'packed', tmp_path / 'dotted'
    for folder in (packed, dotted):
        folder.mkdir()
    for path in raw.iterdir():
        (packed / f'{path.name}.gz').write_bytes(gzip.compress(path.read_bytes()))
        shutil.copy(path, dotted / path.name.replace('-idx', '.idx'))
    for split in ('train', 'test'):
        theirs = torchvision.datasets.MNIST(tmp_path, train=split == 'train')
        for place in (tmp_path / 'MNIST', raw, packed, dotted):
            data = dataset.load(str(place), '', 28, split)
            x, y = loader.decode_all(data)
            assert torch.equal(x[:, 0], theirs.data) and [int(data.classes[i]) for i in y] == theirs.targets.tolist()
        assert dataset.splits(str(packed)) == ['test', 'train']
    assert str(dataset.load(str(packed), '', 28)) == (
        '20 images of 28x28, grey, 10 classes: 0 1 2 ... 9, of the splits test train'
    )
    for path in packed.glob('*labels*'):
        path.unlink()
    assert 'no classes' in str(dataset.load(str(packed), '', 28))


def test_cifar10_is_read_as_torchvision_reads_it(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    for python in (tmp_path, tmp_path / 'cifar-10-batches-py'):
        theirs = torchvision.datasets.CIFAR10(tmp_path)
        data = dataset.load(str(python), '', 32)
        x, y = loader.decode_all(data)
        assert torch.equal(x.permute(0, 2, 3, 1), torch.from_numpy(theirs.data)) and y.tolist() == theirs.targets
        assert str(data) == '20 images of 32x32, colour, 10 classes: airplane automobile bird ... truck'
    rows = x.reshape(20, -1).numpy()
    binary = tmp_path / 'cifar-10-batches-bin'
    binary.mkdir()
    for i in range(5):
        part = slice(4 * i, 4 * i + 4)
        content = np.concatenate([y[part, None].to(torch.uint8).numpy(), rows[part]], axis=1)
        (binary / f'data_batch_{i + 1}.bin').write_bytes(content.tobytes())
    (binary / 'test_batch.bin').write_bytes(bytes([7]) + rows[3].tobytes())
    for a, b in zip(loader.decode_all(dataset.load(str(binary), '', 32)), (x, y), strict=True):
        assert torch.equal(a, b)
    test = dataset.load(str(binary), '', 32, 'test')
    assert torch.equal(test[0][0], x[3]) and test.classes[test[0][1]] == 'horse'
    with pytest.raises(DataError, match='holds 2 data sets: name one of its folders cifar-10-batches-bin cifar-10-'):
        dataset.load(str(tmp_path), '', 32)
    (binary / 'data_batch_4.bin').unlink()
    with pytest.raises(DataError, match='not the five files of CIFAR-10'):
        dataset.load(str(binary), '', 32)


def test_damaged_original_files_are_named(tmp_path, monkeypatch):
    write_mnist(tmp_path, 'MNIST')
    write_cifar10(tmp_path, monkeypatch)
    raw, batches = tmp_path / 'MNIST' / 'raw', tmp_path / 'cifar-10-batches-py'
    images, labels, batch = raw / 'train-images-idx3-ubyte', raw / 'train-labels-idx1-ubyte', batches / 'data_batch_2'
    head = struct.pack('>4i', 2051, 20, 28, 28)
    for path, wrong, phrase in (
        (images, images.read_bytes()[:-9], 'train-images-idx3-ubyte holds 15671 values, its header says 15680'),
        (images, images.read_bytes() + b'0', 'holds more values, its header says 15680'),
        (images, head[:9], 'train-images-idx3-ubyte cannot be read'),
        (images, b'', 'train-images-idx3-ubyte cannot be read'),
        (images, struct.pack('>4i', 3331, 20, 28, 28), 'is no idx file of bytes'),
        (images, labels.read_bytes(), r'holds \[20\], and not \[N, H, W\]'),
        (labels, struct.pack('>2i', 2049, 3) + b'abc', r'20 images, and labels \[3\]'),
        (raw / 'train-images-idx3-ubyte.gz', gzip.compress(images.read_bytes())[:99], 'cannot be read'),
        (batch, batch.read_bytes()[:-99], 'data_batch_2 is no file of CIFAR-10 for Python'),
        (batch, pickle.dumps({'data': np.zeros((2, 3), np.uint8), 'labels': [1, 2]}), r'data is uint8 \[2, 3\]'),
        (batch, pickle.dumps({'data': np.zeros((1, 3072), np.uint8), 'labels': [10]}), 'labels from 10 to 10'),
        (batch, pickle.dumps({'data': np.zeros((0, 3072), np.uint8), 'labels': np.zeros(0, int)}), 'labels int64'),
        (batch, b'', 'data_batch_2 is no file of CIFAR-10'),
    ):
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(wrong)
        if path.suffix == '.gz':
            images.unlink()
        with pytest.raises(DataError, match=phrase) as caught:
            dataset.load(str(path.parent), '', 28)
        assert '\n' not in str(caught.value)
        if before is not None:
            path.write_bytes(before)


def test_a_folder_has_files_of_one_kind(tmp_path, folder_of_images):
    np.save(tmp_path / 'a.npy', PIXELS)
    shutil.copy(tmp_path / 'a.npy', folder_of_images / 'features.npy')  # no image file: left alone
    assert len(dataset.load(str(folder_of_images), '', 8)) == 12
    write_mnist(folder_of_images, 'MNIST')
    with pytest.raises(DataError, match='holds images and files of MNIST: name a file or folder of one kind'):
        dataset.load(str(folder_of_images), '', 8)
    with pytest.raises(DataError, match='train-images-idx3-ubyte is one of several files: name the folder'):
        dataset.load(str(folder_of_images / 'MNIST' / 'raw' / 'train-images-idx3-ubyte'), '', 8)


def test_a_changed_file_has_another_identity(tmp_path):
    found = []
    for array in (PIXELS, PIXELS[::-1]):
        for name, save in (('a.npz', np.savez), ('a.npy', np.save)):
            save(tmp_path / name, array)
            os.utime(tmp_path / name, (len(found), len(found)))
            found.append(opened(tmp_path / name).identity())
    assert len({identity['files'] for identity in found}) == 4 and found[0]['from'] == str(tmp_path / 'a.npz')


def test_arrays_and_original_files_are_trained_on_and_scored(tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path, 'MNIST')
    argv = [*TINY, '--dataset=MNIST', '--train', '--cond', '--sample', '--labels=7', '--logdir=run', '--batch_size=4']
    status, _, error = cli(*argv)
    assert status == 0 and 'MNIST, train: 20 images of 28x28, grey, resized to 8x8, 10 classes' in error, error
    status, _, error = cli(*argv, '--dataset=nowhere', '--logdir=other')
    assert status == 1 and 'nowhere is no file or folder that exists, nor one of cifar10, mnist' in one_line(error)
    np.save(tmp_path / 'a.npy', PIXELS)
    n, batches = dataset.read_images('a.npy')
    assert n == 40 and torch.equal(torch.cat(list(batches)), READ)
