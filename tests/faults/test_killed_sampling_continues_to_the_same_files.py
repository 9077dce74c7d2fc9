"""--sample, killed and restarted, ends with the files of an unbroken run: none drawn twice, torn or missing."""

from functools import partial

import kills
import numpy as np
from conftest import TINY
from PIL import Image
from runs import Forked

STAGES = [  # a kill, and how many of 12 images may be there after it
    (partial(kills.on_call, 'PIL.ImageFile._save', nth=2, before=False), [1]),  # half a PNG is written
    (partial(kills.on_call, 'sample.os.replace', nth=4), [3]),
    (partial(kills.on_call, 'sample.os.replace', nth=4, before=False), [6]),
    (partial(kills.on_call, 'draw.walk.denoise', nth=2), range(6, 10)),  # while a batch is being written
    (partial(kills.on_call, 'draw.folder._pack'), [12]),
    (partial(kills.on_call, 'sample.os.replace', nth=2), [12]),
]


def test_a_kill_at_each_stage(tmp_path, cli):
    assert cli(*TINY, '--train', '--lr=0.01', f'--logdir={tmp_path / "run"}')[0] == 0
    argv = ['--sample', f'--logdir={tmp_path / "run"}', '--num_images=12', '--sample_batch_size=3', '--precision=fp32']
    killed, whole = tmp_path / 'killed', tmp_path / 'whole'
    seen = {}
    for kill, there in STAGES:
        assert Forked(*argv, f'--out={killed}', log=tmp_path / 'log', before=kill).status() == -9
        found = {path: path.stat().st_mtime_ns for path in killed.glob('0*.png')}
        assert seen.items() <= found.items() and len(found) in there  # no image was drawn again
        for path in found:
            Image.open(path).load()
        assert not (killed / 'samples.npz').exists()
        seen = found
    for out in (killed, whole):
        assert Forked(*argv, f'--out={out}', log=tmp_path / 'log').status() == 0
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in killed.iterdir()) and len(names) == 12 + 3
    a, b = (np.load(out / 'samples.npz')['arr_0'].astype(int) for out in (killed, whole))
    assert abs(a - b).max() <= 1  # rounding depends on the other images of the batch
    assert len(np.unique(a.reshape(12, -1), axis=0)) == 12
