"""Parquet files: which column is read, in which order, and the message about what is not clear."""

import io
import os
import pickle
import sys
from datetime import date
from functools import partial

import numpy as np
import pytest
import torch
from conftest import TINY
from kills import on_call
from PIL import Image
from ranks import Ranks
from runs import Forked, differences, load, one_line, without_logdir

pytest.importorskip('pyarrow')

import pyarrow as pa
import pyarrow.parquet as pq
from parquet_files import encoded, features_of, images, write

import dataset
import score
from dataset import DataError, loader
from dataset import parquet as parquet_reader
from run import distributed

CLASSES = ['ant', 'bee', 'cat']
CPU = torch.device('cpu')
SHARDS = [f'train-{i:05d}-of-00003.parquet' for i in range(3)]


def shards(folder, format='PNG', by='pyarrow'):
    """Write 60 images and labels to three files."""
    contents, labels = images(60, format=format), [i % 3 for i in range(60)]
    for i, name in enumerate(SHARDS):
        image, label = contents[20 * i : 20 * i + 20], labels[20 * i : 20 * i + 20]
        if by == 'pyarrow':
            write(folder / name, image=image, label=[CLASSES[y] for y in label])
            continue
        datasets = pytest.importorskip('datasets')
        features = datasets.Features({'image': datasets.Image(), 'label': datasets.ClassLabel(names=CLASSES)})
        rows = {'image': [{'bytes': content, 'path': None} for content in image], 'label': label}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / name, batch_size=7)
    return folder


def expected(format):
    """Return the pixels of `shards`, uint8 [60, 3, 8, 8]."""
    pixels = [np.asarray(Image.open(io.BytesIO(content))) for content in images(60, format=format)]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


@pytest.mark.parametrize('format', ['PNG', 'JPEG'])
@pytest.mark.parametrize('by', ['pyarrow', 'datasets'])
def test_rows_are_batches_in_the_order_of_seed_and_epoch(tmp_path, monkeypatch, format, by):
    folder = tmp_path / 'set'
    folder.mkdir()
    data = dataset.load(str(shards(folder, format, by)), '', 8)
    assert str(data) == '60 images of 8x8, colour, 3 classes: ant bee cat, from image and label of 3 files'
    pixels, labels = loader.decode_all(data)
    assert torch.equal(pixels, expected(format)) and labels.tolist() == [i % 3 for i in range(60)]
    monkeypatch.setattr(parquet_reader, 'CACHED_BYTES', 2000)
    monkeypatch.setattr(loader, 'RESIDENT_BYTES', 0)
    for first, workers in ((0, 0), (10, 2)):  # the later one is within the second epoch
        order = loader.index_batches(60, 8, 5, first)
        stream = loader.batches(data, 8, 5, first, CPU, False, workers)
        for _ in range(9):
            (x, y), chosen = next(stream), next(order)
            assert torch.equal(x, pixels[chosen].float() / 127.5 - 1) and y.tolist() == (chosen % 3).tolist()


def test_few_row_groups_are_held_and_each_is_read_once_in_order(tmp_path, monkeypatch):
    path = write(tmp_path / 'a.parquet', image=images(60), group=6)
    items = dataset.load(str(path), '', 8).items
    monkeypatch.setattr(parquet_reader, 'CACHED_BYTES', 5000)
    read = []
    opened = items._opened
    monkeypatch.setattr(items, '_opened', lambda file: (read.append(file), opened(file))[1])
    items.kept.clear()
    for i in range(60):
        items[i]
    assert len(read) == 10 and 0 < len(items.kept) < 5
    assert not pickle.loads(pickle.dumps(dataset.load(str(path), '', 8))).items.kept


def test_a_survey_looks_at_few_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_reader, 'LOOKED_AT', 3)
    path = write(tmp_path / 'a.parquet', image=images(60), group=6)
    items = dataset.load(str(path), '', 8).items
    assert items.looked_at == [*range(6), *range(18, 24), *range(36, 42)]
    assert set(items.kept) == {0, 3, 6}


@pytest.mark.parametrize('by', ['pyarrow', 'datasets'])
def test_a_run_killed_within_an_epoch_resumes_to_the_same_bits(tmp_path, by):
    (tmp_path / 'set').mkdir()
    argv = [*TINY, '--train', '--cond', f'--dataset={shards(tmp_path / "set", by=by)}', '--total_steps=10']
    argv += ['--save_step=2', f'--logdir={tmp_path / "killed"}']
    log = tmp_path / 'log'
    assert Forked(*argv, log=log, before=partial(on_call, 'train.Run.update', 4)).status() == -9
    assert Forked(*argv, log=log).status() == 0, log.read_text()
    assert Forked(*argv, f'--logdir={tmp_path / "whole"}', log=log).status() == 0
    whole, killed = (load(tmp_path / name) for name in ('whole', 'killed'))
    assert whole['step'] == 10 and whole['config']['class_names'] == CLASSES
    assert differences(without_logdir(whole), without_logdir(killed)) == []


def test_ranks_share_a_batch_without_overlap(tmp_path, monkeypatch):
    (tmp_path / 'set').mkdir()
    path, log = shards(tmp_path / 'set'), tmp_path / 'log'
    data = dataset.load(str(path), '', 8)
    monkeypatch.setattr(loader, 'RESIDENT_BYTES', 0)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(distributed, 'rank', lambda rank=rank: rank)
        monkeypatch.setattr(distributed, 'world', lambda: 3)
        stream = loader.batches(data, 8, 0, 0, CPU, False, 0, share=distributed.share(8))
        shares.append([next(stream)[0] for _ in range(7)])
    whole = loader.batches(data, 8, 0, 0, CPU, False, 0)
    for parts in zip(*shares, strict=True):
        assert torch.equal(torch.cat(parts), next(whole)[0])
    monkeypatch.undo()
    ranks = Ranks(2, *TINY, '--train', f'--dataset={path}', f'--logdir={tmp_path / "run"}', log=log)
    assert ranks.status() == [0, 0], ranks.error()
    assert load(tmp_path / 'run')['step'] == 4


# --- columns


def test_the_column_of_images_is_found(tmp_path):
    contents = images(4)
    folder = tmp_path / 'images'
    folder.mkdir()
    for i, content in enumerate(contents):
        (folder / f'{i}.png').write_bytes(content)
    kinds = {
        'bytes': {'text': ['x'] * 4, 'jpg': contents},
        'features': {'image': features_of(contents), 'caption': ['a.png'] * 4},
        'other order': {'image': pa.array([{'path': f'{i}.png', 'bytes': each} for i, each in enumerate(contents)])},
        'large': {'image': pa.array(contents, pa.large_binary())},
        'paths': {'file_name': [f'images/{i}.png' for i in range(4)], 'score': [0.5] * 4},
        'features with paths': {'image': pa.array([{'bytes': None, 'path': f'images/{i}.png'} for i in range(4)])},
    }
    for kind, columns in kinds.items():
        data = dataset.load(str(write(tmp_path / f'{kind}.parquet', group=3, **columns)), '', 8)
        found = torch.stack([data[i][0] for i in range(4)])
        assert torch.equal(found, expected('PNG')[:4]), kind
        assert data.items.no_classes == 'as no column is called label'


@pytest.mark.parametrize('kind', ['texts', 'structs', 'some'])
def test_a_cache_of_images_that_lie_beside_knows_them(tmp_path, kind):
    (tmp_path / 'set').mkdir()
    contents = images(4)
    for i, content in enumerate(contents):
        (tmp_path / 'set' / f'{i}.png').write_bytes(content)
    paths = [f'{i}.png' for i in range(4)]
    column = {
        'texts': paths,
        'structs': pa.array([{'bytes': None, 'path': path} for path in paths]),
        'some': pa.array([{'bytes': contents[0] if path == '0.png' else None, 'path': path} for path in paths]),
    }[kind]
    items = parquet_reader.Parquet(str(write(tmp_path / 'set' / 'a.parquet', image=column)), ['a.parquet'], '')
    before = items.identity()
    assert items.identity() == before
    os.utime(tmp_path / 'set' / '2.png', (1, 1))
    assert items.identity()['files'] != before['files']


@pytest.mark.parametrize(
    'label, classes',
    [
        ([2, 10, 2, 0], '3 classes: 0 2 10'),
        (['dog', 'cat', 'dog', 'ant'], '3 classes: ant cat dog'),
        (pa.array(['b', 'a', 'b', 'b']).dictionary_encode(), '2 classes: a b'),
        (pa.array([None] * 4, pa.int64()), 'no classes, as label is empty'),
    ],
)
def test_labels_without_names(tmp_path, label, classes):
    data = dataset.load(str(write(tmp_path / 'a.parquet', image=images(4), label=label, group=3)), '', 8)
    assert classes in str(data)
    if data.classes:
        texts = pa.array(label).to_pylist()
        assert [data.classes[data[i][1]] for i in range(4)] == [str(text) for text in texts]


def test_withheld_labels_are_none(tmp_path):
    path = write(tmp_path / 'a.parquet', image=features_of(images(3)), label=[-1] * 3, classes=CLASSES)
    assert 'no classes, as every label is -1' in str(dataset.load(str(path), '', 8))


def test_two_columns_of_labels_are_none(tmp_path):
    path = write(tmp_path / 'a.parquet', image=images(3), label=[0, 1, 2], labels=[0, 0, 0])
    assert 'no classes, as label and labels could be the labels' in str(dataset.load(str(path), '', 8))


# --- what is refused

BROKEN = images(1)[0][:60]
REFUSED = {
    'no images': ({'a': [1, 2], 'b': ['x', 'y']}, r'a\.parquet cannot be read: it has no column of images: a'),
    'two images': ({'a': images(2), 'b': images(2)}, 'it has 2 columns of images, a b: write it anew with one'),
    'empty': ({'image': pa.array([], pa.binary())}, r'a\.parquet has no rows'),
    'broken': ({'image': [*images(9), BROKEN]}, r'a\.parquet, row 9 cannot be decoded'),
    'null': ({'image': [*images(9), None]}, r'a\.parquet, row 9 cannot be decoded \(there is no image'),
    'text': ({'image': [b'words'] * 3}, r'a\.parquet, row 0 cannot be decoded'),
    'gone': ({'image': ['a.png', 'b.png']}, r'a\.parquet, row 0 cannot be decoded .*No such file'),
    'unlabelled': ({'image': images(9), 'label': [0] * 8 + [None]}, 'row 8 has no label, but others have one'),
    'negative': ({'image': images(9), 'label': [0] * 8 + [-1]}, 'row 8 has the label -1: count labels from 0'),
    'floats': ({'image': images(2), 'label': [0.5, 1]}, r'a\.parquet: the labels are float64 \[2\]'),
    'lists': ({'image': images(2), 'label': [[0, 1], [2]]}, r'a\.parquet: the labels are of type list: they'),
    'dates': ({'image': images(2), 'label': [date.min, date.max]}, 'the labels are of type date: they must be'),
    'texts of classes': (
        {'image': features_of(images(2)), 'label': ['ant', 'bee'], 'classes': CLASSES},
        'the labels are of type str: they must be numbers of classes',
    ),
    'outside': ({'image': features_of(images(9)), 'label': [2] * 8 + [3], 'classes': CLASSES}, 'row 8 has the label 3'),
    'withheld among others': (
        {'image': features_of(images(9)), 'label': [2] * 8 + [-1], 'classes': CLASSES},
        r'a\.parquet, row 8 has the label -1, but there are 3 classes',
    ),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_what_is_not_clear_is_refused(tmp_path, kind):
    columns, phrase = REFUSED[kind]
    path = write(tmp_path / 'a.parquet', **columns)
    with pytest.raises(DataError, match=phrase) as caught:
        loader.decode_all(dataset.load(str(path), '', 8))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('content', [b'', b'PAR1', b'PAR1 nothing of the kind PAR1', 'cut', 'flipped'])
def test_a_file_that_is_none_is_named(tmp_path, content):
    path = write(tmp_path / 'set' / 'a.parquet', image=images(9))
    whole = path.read_bytes()
    if content == 'flipped':
        whole = whole[:40] + bytes(200) + whole[240:]
    path.write_bytes(content if isinstance(content, bytes) else whole[:-200] if content == 'cut' else whole)
    with pytest.raises(DataError, match=r'a\.parquet.* cannot be (read|decoded)') as caught:
        loader.decode_all(dataset.load(str(tmp_path / 'set'), '', 8))
    assert '\n' not in str(caught.value)


def test_files_that_differ_are_refused(tmp_path):
    write(tmp_path / 'set' / 'a.parquet', image=features_of(images(3)), label=[0, 1, 2], classes=CLASSES)
    others = {
        'has the columns img, a.parquet image label': {'img': images(3)},
        'has the classes ant dog cat, a.parquet ant bee cat': {
            'image': features_of(images(3)), 'label': [0, 1, 2], 'classes': ['ant', 'dog', 'cat']
        },
        'has the classes none, a.parquet ant bee cat': {'image': images(3), 'label': [0, 1, 2]},
    }  # fmt: skip
    for phrase, columns in others.items():
        write(tmp_path / 'set' / 'b.parquet', **columns)
        with pytest.raises(DataError, match=f'b.parquet {phrase}'):
            dataset.load(str(tmp_path / 'set'), '', 8)


def test_labels_of_several_types_are_refused(tmp_path):
    write(tmp_path / 'a.parquet', image=images(2), label=[0, 1])
    write(tmp_path / 'b.parquet', image=images(2), label=['0', 'ant'])
    with pytest.raises(DataError, match='the labels are of type int and str: they must be integers or texts'):
        dataset.load(str(tmp_path), '', 8)


def test_files_and_row_groups_without_rows_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_reader, 'LOOKED_AT', 2)
    write(tmp_path / 'a.parquet', file=pa.array([], pa.string()))  # not known to be paths
    table = pa.table({'file': ['x/a.png'] * 3})
    with pq.ParquetWriter(tmp_path / 'b.parquet', table.schema) as writer:
        for part in (table[:0], table[:1], table[:0], table[1:]):
            writer.write_table(part)
    (tmp_path / 'x').mkdir()
    (tmp_path / 'x' / 'a.png').write_bytes(images(1)[0])
    data = dataset.Images(parquet_reader.Parquet(str(tmp_path), ['a.parquet', 'b.parquet'], ''), None, 3, [], 8)
    assert len(data) == 3 and data.items.looked_at == [0, 1, 2] and data.items.name(2) == 'b.parquet, row 2'
    assert torch.equal(loader.decode_all(data)[0], expected('PNG')[:1].expand(3, -1, -1, -1))


def test_a_row_group_too_large_for_a_worker_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_reader, 'GROUP_BYTES', 1000)
    with pytest.raises(DataError, match='a.parquet has a row group with .* GiB of images: write it anew by'):
        dataset.load(str(write(tmp_path / 'a.parquet', image=images(9))), '', 8)


def test_sizes_and_colours_may_be_mixed(tmp_path):
    grey = [encoded(np.arange(64, dtype=np.uint8).reshape(8, 8))]
    wide = [encoded(np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8))]
    data = dataset.load(str(write(tmp_path / 'a.parquet', image=grey + wide)), '', 8)
    assert str(data).startswith('2 images of 8x8 to 8x12 (HxW), colour, cropped and resized to 8x8')
    assert [data[i][0].shape for i in range(2)] == [(3, 8, 8)] * 2
    assert dataset.load(str(write(tmp_path / 'b.parquet', image=grey)), '', 8).channels == 1


def test_without_the_package_the_line_names_the_requirements(tmp_path, cli, monkeypatch):
    path = write(tmp_path / 'a.parquet', image=images(9))
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    for name in (path, 'hf:me/digits'):
        status, _, error = cli(*TINY, '--train', f'--dataset={name}', f'--logdir={tmp_path / "run"}')
        assert status == 1 and 'pip install -r requirements-parquet.txt' in one_line(error)
    assert not (tmp_path / 'run').exists()


# --- splits


def test_names_tell_the_splits(tmp_path):
    names = {
        'train/0000.parquet': 5, 'train/0001.parquet': 2, 'test/0000.parquet': 3, 'extra/0000.parquet': 4,
        'validation/0000.parquet': 1,
    }  # fmt: skip
    for name, n in names.items():
        write(tmp_path / 'plain_text' / name, image=images(n, seed=n))
    found = {split: dataset.load(str(tmp_path), '', 8, split) for split in ('train', 'test')}
    assert {split: len(data) for split, data in found.items()} == {'train': 7, 'test': 3}
    assert str(found['test']).endswith('1 file, of the splits other test train validation')
    assert dataset.splits(str(tmp_path)) == ['other', 'test', 'train', 'validation']
    with pytest.raises(DataError, match='has the splits other test train validation: name one alone'):
        dataset.read_images(str(tmp_path))
    alone = tmp_path / 'plain_text' / 'validation'
    assert len(dataset.load(str(alone), '', 8)) == 1 and dataset.splits(str(alone)) == []
    write(tmp_path / 'other' / 'train-00000-of-00001.parquet', image=images(2))
    with pytest.raises(DataError, match='holds 2 data sets: name one of its folders other plain_text'):
        dataset.load(str(tmp_path), '', 8)


def test_other_layouts(tmp_path, caplog):
    for name in ('data/train-00000-of-00003-0123456789abcdef.parquet', 'data/train-00002-of-00003.parquet'):
        write(tmp_path / 'a' / name, image=images(2))
    assert str(dataset.load(str(tmp_path / 'a'), '', 8)).endswith('from image of 2 files')
    assert 'by the names of its files, there are 2 of 3' in caplog.text
    write(tmp_path / 'b' / 'default' / 'partial-train' / '0000.parquet', image=images(2))
    dataset.load(str(tmp_path / 'b'), '', 8)
    assert 'partial-train/0000.parquet is only the first part' in caplog.text
    for name in ('part-2.snappy.parquet', 'part-10.snappy.parquet', 'trained.parquet', 'test_images.parquet'):
        write(tmp_path / 'c' / name, image=images(2))
    data = dataset.load(str(tmp_path / 'c'), '', 8)
    first = ['part-2.snappy.parquet', 'part-10.snappy.parquet']
    assert data.items.files == [*first, 'test_images.parquet', 'trained.parquet']


@pytest.mark.parametrize('train, test', [('digits-train', 'digits-test'), ('x_train', 'x_val'), ('train1/a', 'val1/a')])
def test_names_that_only_hint_at_splits_are_refused(tmp_path, train, test):
    for name in (train, test):
        write(tmp_path / f'{name}.parquet', image=images(2))
    with pytest.raises(DataError, match='seems to hold the splits t.* and .*: name one file, or put each into a fold'):
        dataset.load(str(tmp_path), '', 8)
    assert len(dataset.load(str(tmp_path / f'{train}.parquet'), '', 8)) == 2


def test_a_run_takes_labels_by_name_and_the_test_split_of_its_set(tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shards(tmp_path / 'set')
    write(tmp_path / 'set' / 'test-00000-of-00001.parquet', image=images(9, seed=1), label=['cat', 'ant', 'bee'] * 3)
    monkeypatch.setitem(score.classifier.cache_classifier.__kwdefaults__, 'steps', 2)
    flags = '--dataset=set', '--feature_net=classifier', f'--logdir={tmp_path / "run"}', '--num_images=8'
    status, _, error = cli(*TINY, *flags, '--train', '--sample', '--eval', '--cond', '--labels=cat,ant')
    assert status == 0 and 'labels in turn: cat ant' in error, error
    assert 'it reads' in error and 'of 9 test images as labelled' in error
    again = cli('--eval', *flags[1:])[2]
    assert 'training a classifier' not in again and 'building it' not in again
    write(tmp_path / 'set' / SHARDS[0], image=images(20, seed=2), label=['cat'] * 20)
    assert 'was made' in cli('--eval', *flags[1:])[2]
    scored = '--images=set/test-00000-of-00001.parquet', '--img_size=8', '--channels=3'
    status, out, error = cli('--eval', *scored, *flags[:2])
    assert status == 0 and '9 images of 8x8, RGB' in out, error
