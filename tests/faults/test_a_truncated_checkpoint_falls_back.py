"""If ckpt.pt is cut short or empty, a run resumes from ckpt.prev.pt with a warning, and keeps that file."""

import os

import pytest
from conftest import TINY
from runs import differences, load

from run import checkpoint


@pytest.mark.parametrize('kept', [0.5, -1, 0], ids=['half', 'minus one byte', 'empty'])
def test_training_goes_on_from_the_one_before(tmp_path, cli, kept):
    path = tmp_path / 'ckpt.pt'
    argv = [*TINY, '--train', f'--logdir={tmp_path}', '--save_step=2']
    assert cli(*argv)[0] == 0
    whole, content = load(tmp_path), path.read_bytes()
    damaged = content[: len(content) // 2 if kept == 0.5 else kept]
    path.write_bytes(damaged)
    status, _, error = cli('--sample', f'--logdir={tmp_path}', '--num_images=1')
    assert status == 0 and f'WARNING: {path} is damaged' in error and 'using' in error and path.exists()
    status, _, error = cli(*argv)
    assert status == 0 and 'WARNING' in error and 'at step 2' in error
    # The damaged file was not rotated over the good one, and the run made what was lost again.
    assert load(tmp_path)['step'] == 4 and load(tmp_path, 'ckpt.prev.pt')['step'] == 2
    assert (tmp_path / 'ckpt.bad.pt').read_bytes() == damaged
    assert differences(load(tmp_path), whole) == []


def test_a_lost_file_falls_back_too(tmp_path, caplog):
    path = str(tmp_path / 'ckpt.pt')
    for n in (1, 2):
        checkpoint.save(path, {'step': n})
    os.remove(path)
    assert checkpoint.load(path)['step'] == 1 and 'is missing: using' in caplog.text
