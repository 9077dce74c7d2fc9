"""A label means the class of that name, in every split and zip, and in old and new checkpoints."""

import os
import zipfile

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from runs import config_of, load, one_line

import dataset
from dataset import loader
from run import inputs, labels
from run.config import adopt

SHADES = {str(i): 20 * i for i in range(1, 13)}  # class -> the shade of its images
FLAGS = [*TINY, '--cond', '--norandom_flip']


def folder_of(path, shades, n=2):
    """Make a folder of n images per class, all of the shade of their class except for a corner."""
    for top, shade in shades.items():
        (path / top).mkdir(parents=True)
        for i in range(n):
            pixels = np.full((8, 8), shade, np.uint8)
            pixels[0, 0] = 255 - shade
            Image.fromarray(pixels).save(path / top / f'{i}.png')
    return path


def shades_by_label(data):
    """Return {label: the shade of its images}."""
    images, labels = loader.decode_all(data)
    return {y: images[labels == y][0, 0, 4, 4].item() for y in labels.unique().tolist()}


def test_classes_are_in_natural_order(tmp_path):
    data = dataset.load(str(folder_of(tmp_path / 'set', SHADES)), '', 8)
    assert data.classes == list(SHADES)
    assert shades_by_label(data) == {int(top) - 1: shade for top, shade in SHADES.items()}
    assert str(data) == '24 images of 8x8, grey, 12 classes: 1 2 3 ... 12'


def test_another_split_is_numbered_by_name(tmp_path):
    folder_of(tmp_path / 'train', SHADES)
    folder_of(tmp_path / 'test', {top: shade for top, shade in SHADES.items() if top not in ('1', '7')})
    flags = [*FLAGS, f'--dataset={tmp_path / "train"}', f'--test_dataset={tmp_path / "test"}']
    images, labels, test_images, test_labels = inputs.labelled(config_of(*flags))
    by_label = dict(zip(labels.tolist(), images[:, 0, 4, 4].tolist(), strict=True))
    assert len(test_labels) == 20 and {0, 6}.isdisjoint(test_labels.tolist())
    assert [by_label[y] for y in test_labels.tolist()] == test_images[:, 0, 4, 4].tolist()
    folder_of(tmp_path / 'test', {'13': 250})
    with pytest.raises(dataset.DataError, match='test has 1 class: 13, .*train has 12 classes: 1 2 3 ... 12'):
        inputs.labelled(config_of(*flags))


def test_splits_are_of_one_colour(tmp_path):
    grey, colour = (folder_of(tmp_path / name, {'a': 20, 'b': 200}) for name in ('grey', 'colour'))
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(colour / 'a' / '0.png')
    images, _, test_images, _ = inputs.labelled(config_of(*FLAGS, f'--dataset={colour}', f'--test_dataset={grey}'))
    assert images.shape[1] == test_images.shape[1] == 3
    with pytest.raises(dataset.DataError, match='colour is in colour, .*grey is grey: --channels=3'):
        inputs.labelled(config_of(*FLAGS, f'--dataset={grey}', f'--test_dataset={colour}'))


@pytest.fixture
def run(tmp_path, cli):
    """Return run(*flags) -> (status, out, error) of training on tmp_path/set in tmp_path/run."""
    folder_of(tmp_path / 'set', SHADES)
    flags = [*FLAGS, f'--dataset={tmp_path / "set"}', f'--logdir={tmp_path / "run"}', '--train']
    return lambda *more: cli(*flags, *more)


def test_names_are_kept_and_chosen_by(run, tmp_path, cli):
    status, _, error = run()
    assert status == 0 and '24 images of 8x8, grey, 12 classes: 1 2 3 ... 12' in error
    assert load(tmp_path / 'run')['config']['class_names'] == list(SHADES)
    config = config_of()
    adopted = adopt(config, load(tmp_path / 'run')['config'], set())
    for asked, chosen in (('12,1', [11, 0]), ('2', [1]), ('all', list(range(12)))):
        adopted.labels = asked
        assert list(labels.chosen(adopted)) == chosen
    status, _, error = cli('--sample', f'--logdir={tmp_path / "run"}', '--labels=12,3', '--num_images=2')
    assert status == 0 and 'labels in turn: 12 3' in error
    status, _, error = cli('--sample', f'--logdir={tmp_path / "run"}', '--labels=0')  # no class has this name
    assert status == 2 and one_line(error).endswith('--labels=0: the classes are 1 2 3 ... 12')


def test_classes_that_are_words_are_chosen_by_name_or_number():
    config = config_of('--labels=dog,0, big cat')
    config.num_classes, config.class_names = 3, ['big cat', 'cat, small', 'dog']
    assert labels.chosen(config) == [2, 0, 0]
    config.labels = 'cat, small'
    assert labels.chosen(config) == [1]
    config.labels = 'bird'
    with pytest.raises(ValueError, match='--labels=bird: the classes are big cat cat, small dog, by name or number'):
        labels.chosen(config)


def without_names(path):
    state = load(path)
    del state['config']['class_names'], state['config']['image_channels'], state['config']['background']
    torch.save(state, path / 'ckpt.pt')


def test_a_checkpoint_without_names_goes_on_with_the_order_it_was_trained_in(run, tmp_path, cli):
    assert run()[0] == 0
    without_names(tmp_path / 'run')
    status, _, error = run('--total_steps=5')
    by_letters = '1 10 11 12 2 3 4 5 6 7 8 9'
    assert status == 0
    assert (
        f'holds no names of classes: they are numbered as when it was trained, by their letters: {by_letters}' in error
    )
    state = load(tmp_path / 'run')
    assert state['step'] == 5 and state['config']['class_names'] == by_letters.split()
    # From now on it is like any other: data keep this numbering, and labels are chosen by name.
    adopted = adopt(config_of('--labels=10'), state['config'], set())
    data = inputs.dataset(adopted)
    assert labels.chosen(adopted) == [1] and shades_by_label(data)[1] == SHADES['10']
    status, _, error = run('--total_steps=6')
    assert status == 0 and 'holds no names' not in error
    assert load(tmp_path / 'run')['config']['class_names'] == by_letters.split()


def test_a_checkpoint_without_names_is_drawn_from_by_number(run, tmp_path, cli):
    assert run()[0] == 0
    without_names(tmp_path / 'run')
    for asked, status in (('11,0', 0), ('12', 2)):
        out = tmp_path / asked
        argv = [f'--logdir={tmp_path / "run"}', f'--labels={asked}', f'--out={out}', '--num_images=2']
        found, _, error = cli('--sample', *argv)
        assert found == status, error
    assert one_line(error).endswith('--labels=12: the labels are 0 to 11')


def test_training_goes_on_by_name_and_refuses_others(run, tmp_path):
    assert run()[0] == 0
    (tmp_path / 'set' / '3').rename(tmp_path / 'set' / '03')
    status, _, error = run('--total_steps=5')
    assert status == 1 and 'has 1 class: 03, the checkpoint was trained on 12 classes: 1 2 3 ... 12' in one_line(error)
    assert load(tmp_path / 'run')['step'] == 4


def test_new_classes_come_last_while_there_is_room(run, tmp_path):
    assert run('--num_classes=13')[0] == 0
    folder_of(tmp_path / 'set', {'0': 250})
    assert run('--num_classes=13', '--total_steps=5')[0] == 0
    assert load(tmp_path / 'run')['config']['class_names'] == [*SHADES, '0']


@pytest.mark.parametrize('above', [[], ['.']])
@pytest.mark.parametrize('separator', ['/', '\\'])
def test_a_zip_keeps_its_classes(tmp_path, separator, above):
    folder = folder_of(tmp_path / 'set', {'cat': 20, 'dog': 200})
    with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as archive:
        for path in folder.rglob('*.png'):
            archive.writestr(separator.join([*above, *path.relative_to(folder).parts]), path.read_bytes())
        archive.writestr(separator.join([*above, 'cat', '.hidden', 'a.png']), b'')
    data = dataset.load(str(tmp_path / 'set.zip'), '', 8)
    assert len(data) == 4 and data.classes == ['cat', 'dog'] and shades_by_label(data) == {0: 20, 1: 200}


def test_links_are_followed_but_not_back(tmp_path, caplog):
    folder = folder_of(tmp_path / 'set', {'cat': 20, 'dog': 200})
    folder_of(tmp_path / 'elsewhere', {'deep': 100})
    os.symlink(folder, folder / 'cat' / 'up')
    os.symlink(tmp_path, folder / 'dog' / 'further up')
    os.symlink('self', folder / 'dog' / 'self')
    os.symlink(tmp_path / 'elsewhere', folder / 'emu')
    data = dataset.load(str(folder), '', 8)
    assert data.items.names == ['cat/0.png', 'cat/1.png', 'dog/0.png', 'dog/1.png', 'emu/deep/0.png', 'emu/deep/1.png']
    assert shades_by_label(data) == {0: 20, 1: 200, 2: 100}
    assert caplog.text.count('leads back to a folder that it lies in') == 2


def test_an_image_in_no_folder_is_named_as_why_there_are_no_classes(tmp_path):
    folder = folder_of(tmp_path / 'set', {'cat': 20, 'dog': 200})
    Image.new('L', (8, 8)).save(folder / 'grid.png')
    assert str(dataset.load(str(folder), '', 8)) == '5 images of 8x8, grey, no classes, as grid.png lies in no folder'
