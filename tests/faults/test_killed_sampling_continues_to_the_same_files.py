"""--sample killed and started again ends with the files of an undisturbed one: none twice, none torn, none missing."""

from functools import partial

import kills
import numpy as np
from conftest import TINY
from PIL import Image
from runs import Forked


def test_five_kills(tmp_path, cli):
    assert cli(*TINY, '--train', '--lr=0.01', f'--logdir={tmp_path / "run"}')[0] == 0
    argv = ['--sample', f'--logdir={tmp_path / "run"}', '--num_images=12', '--sample_batch_size=3', '--precision=fp32']
    seen = []
    for seed in range(5):
        kill = partial(kills.at_random, 'sample.draw', seed, 60_000)
        assert Forked(*argv, f'--out={tmp_path / "killed"}', log=tmp_path / 'log', before=kill).status() == -9
        seen.append({path: path.stat().st_mtime_ns for path in (tmp_path / 'killed').glob('0*.png')})
        for path in seen[-1]:
            Image.open(path).load()
    assert 0 < len(seen[-1]) < 12
    for out in ('killed', 'whole'):
        assert Forked(*argv, f'--out={tmp_path / out}', log=tmp_path / 'log').status() == 0
    for before in seen:  # what was there was not drawn again
        assert before.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / 'killed').iterdir()}.items()
    names = [sorted(path.name for path in (tmp_path / out).iterdir()) for out in ('killed', 'whole')]
    assert names[0] == names[1] and len(names[0]) == 12 + 3
    killed, whole = (np.load(tmp_path / out / 'samples.npz')['arr_0'].astype(int) for out in ('killed', 'whole'))
    assert abs(killed - whole).max() <= 1  # a batch of others rounds otherwise
    assert len(np.unique(killed.reshape(12, -1), axis=0)) == 12
