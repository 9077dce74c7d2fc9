"""Checkpoints: what survives a crash, a full disk, a damaged file and a hostile one."""

import os
import random
import resource
import zipfile
from pathlib import Path

import pytest
import torch

import checkpoint
from checkpoint import CheckpointError


def state(n):
    return {'step': n, 'weights': torch.arange(2000.0) + n, 'config': {'ch': 32, 'attn': []}}


@pytest.fixture
def path(tmp_path):
    """A checkpoint of step 2, with the one of step 1 before it."""
    path = str(tmp_path / 'ckpt.pt')
    for n in (1, 2):
        checkpoint.save(path, state(n))
    return path


def damage(path, kind):
    with open(path, 'rb') as file:
        content = bytearray(file.read())
    if kind == 'flipped':
        content[len(content) // 2] ^= 4  # among the weights
    with open(path, 'wb') as file:
        file.write({'empty': b'', 'half': content[: len(content) // 2], 'short': content[:-1]}.get(kind, content))


def test_the_newest_is_loaded_and_the_one_before_is_kept(path):
    assert checkpoint.load(path)['step'] == 2
    assert checkpoint.load(checkpoint.previous(path))['step'] == 1
    assert sorted(os.listdir(os.path.dirname(path))) == ['ckpt.prev.pt', 'ckpt.pt']


@pytest.mark.parametrize('kind', ['empty', 'half', 'short', 'flipped'])
def test_a_damaged_file_falls_back_with_a_warning(path, kind, caplog):
    damage(path, kind)
    assert checkpoint.load(path)['step'] == 1
    assert path in caplog.text and 'using' in caplog.text
    assert os.path.exists(path)


def test_after_a_repairing_load_saving_never_rotates_the_damaged_file_over_the_good_one(path):
    damage(path, 'half')
    checkpoint.load(path, repair=True)
    checkpoint.save(path, state(3))
    assert checkpoint.load(path)['step'] == 3
    assert checkpoint.load(checkpoint.previous(path))['step'] == 1
    assert os.path.exists(path.replace('ckpt.pt', 'ckpt.bad.pt'))


def test_two_damaged_files_are_an_error_and_nothing_is_overwritten(path):
    damage(path, 'half')
    damage(checkpoint.previous(path), 'flipped')
    folder = Path(path).parent
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(CheckpointError, match='ckpt.pt is damaged.*ckpt.prev.pt is damaged'):
        checkpoint.load(path, repair=True)
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}


def test_any_flipped_bit_is_noticed_or_harmless(tmp_path):
    path = str(tmp_path / 'ckpt.pt')
    checkpoint.save(path, state(1))
    content = Path(path).read_bytes()
    noticed = 0
    for at in random.Random(0).sample(range(len(content)), 300):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        with open(path, 'wb') as file:
            file.write(flipped)
        try:
            loaded = checkpoint.load(path)
        except CheckpointError:
            noticed += 1
            continue
        assert loaded['step'] == 1 and torch.equal(loaded['weights'], state(1)['weights'])
    assert noticed > 200  # the rest fell into the zip's padding


class RunsCode:
    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    hostile = RunsCode()
    hostile.path = tmp_path / 'ran'
    torch.save({'step': 1, 'trap': hostile}, tmp_path / 'ckpt.pt')
    with pytest.raises(CheckpointError, match='damaged or no checkpoint'):
        checkpoint.load(str(tmp_path / 'ckpt.pt'))
    assert not hostile.path.exists()


def test_a_full_disk_leaves_the_old_checkpoint_whole(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(
            CheckpointError, match='cannot write .*ckpt.pt: File too large; the checkpoint before it'
        ) as error:
            checkpoint.save(path, state(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert '\n' not in str(error.value)
    assert checkpoint.load(path)['step'] == 2
    assert sorted(os.listdir(os.path.dirname(path))) == ['ckpt.prev.pt', 'ckpt.pt']


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint at'):
        checkpoint.load(str(tmp_path / 'ckpt.pt'))
    with zipfile.ZipFile(tmp_path / 'ckpt.pt', 'w') as archive:
        archive.writestr('readme.txt', 'not a checkpoint')
    with pytest.raises(CheckpointError, match='damaged or no checkpoint'):
        checkpoint.load(str(tmp_path / 'ckpt.pt'))


def test_weights_of_another_architecture_are_named():
    net = torch.nn.Linear(2, 3)
    weights = {'weight': torch.zeros(3, 4), 'scale': torch.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_weights(net, weights, 'a.pt')
    for phrase in ('a.pt', 'bias (3,) is missing', 'scale (1,) is not of this network', 'weight is (3, 4), not (3, 2)'):
        assert phrase in str(error.value)


def test_a_folder_is_held_by_one_process(tmp_path):
    with (
        checkpoint.exclusive(str(tmp_path)),
        pytest.raises(CheckpointError, match=f'process {os.getpid()} is training in'),
        checkpoint.exclusive(str(tmp_path)),
    ):
        pass
    with checkpoint.exclusive(str(tmp_path)):
        pass


def test_a_file_that_holds_something_else_is_no_checkpoint(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / 'list.pt')
    with pytest.raises(CheckpointError, match='it holds a list'):
        checkpoint.load(str(tmp_path / 'list.pt'))
