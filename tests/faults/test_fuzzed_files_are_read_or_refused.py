"""Checkpoints, zips, parquet, arrays and statistics with mutated bytes are read or refused, in bounded memory.

FUZZ=10000 tries that many mutated inputs of each kind, different ones every time, in place of 200.
"""

import io
import os
import resource
import signal
import sys
import warnings
import zipfile
from functools import partial

import numpy as np
import pytest
from conftest import TINY
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from runs import Forked, config_of
from score_fakes import small_images, small_net

import dataset
import score
import train
from dataset import DataError
from run.checkpoint import CheckpointError
from run.restore import restore
from score import ScoreError

TIMES = int(os.environ.get('FUZZ', 0))
SECONDS, MEMORY = 30, 2**31  # seconds for one input, memory for all
KINDS = ['flip', 'set', 'cut', 'insert', 'repeat', 'number']
EDIT = st.tuples(st.sampled_from(KINDS), st.floats(0, 1), st.integers(0, 255))
POINTS = [*TINY, '--dataset=moons', '--net=point_mlp', '--ch=32']


def edited(content, edits):
    """Return bytes of which some are flipped, set, cut out, inserted, repeated, or replaced by a large number."""
    content = bytearray(content)
    for kind, where, value in edits:
        at = int(where * max(0, len(content) - 1))
        if kind == 'flip':
            content[at : at + 1] = [byte ^ 1 << value % 8 for byte in content[at : at + 1]]
        elif kind == 'set':
            content[at : at + 1] = [value]
        elif kind == 'cut':
            del content[at : at + 1 + value**2 % 4099]
        elif kind == 'insert':
            content[at:at] = bytes([value]) * (1 + value % 9)
        elif kind == 'repeat':
            content[at:at] = content[at : at + value]
        else:
            content[at : at + 4] = (2 ** (value % 33) - 1).to_bytes(5, 'little')[:4]
    return bytes(content)


def repacked(content, edits, member):
    """Return a zip with one member edited, and with a CRC that fits it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, 'w') as after:
        names = before.namelist()
        for name in names:
            inside = before.read(name)
            after.writestr(name, edited(inside, edits) if name == names[member % len(names)] else inside)
    return buffer.getvalue()


def write_checkpoint(path, config):
    train.train(config)


def write_images(path, _):
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for format, mode in (('png', 'RGB'), ('jpeg', 'L'), ('gif', 'P'), ('tiff', 'CMYK'), ('webp', 'RGBA')):
            content = io.BytesIO()
            Image.fromarray(pixels).convert(mode).save(content, format)
            archive.writestr(f'{mode}/image.{format.replace("jpeg", "jpg")}', content.getvalue())


def write_parquet(path, _):
    import parquet_files

    contents = parquet_files.images(20)
    columns = {'image': parquet_files.features_of(contents), 'label': [0, 1] * 10, 'classes': ['a', 'b']}
    parquet_files.write(path, **columns)


def write_arrays(path, _):
    np.savez(path, x=np.random.default_rng(0).integers(0, 255, (9, 8, 8, 3), dtype=np.uint8), y=np.arange(9) % 3)


def write_statistics(path, _):
    score.save_statistics(path, score.build_statistics(small_net(), small_images(30).split(10), 30))


def read_checkpoint(path, config):
    run = train.Run(config)
    run.resume()
    restore(config, set())


def read_images(path, _):
    images = dataset.load(str(path), '', 8)
    refused = []
    for i in range(len(images)):
        try:
            images[i]
        except DataError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def read_statistics(path, _):
    score.load_statistics(path, small_net())


READERS = {  # file name -> what writes it, what reads it, and the errors allowed
    'ckpt.pt': (write_checkpoint, read_checkpoint, (CheckpointError, ValueError)),
    'images.zip': (write_images, read_images, DataError),
    'images.parquet': (write_parquet, read_images, DataError),
    'arrays.npz': (write_arrays, read_images, DataError),
    'set.npz': (write_statistics, read_statistics, ScoreError),
}


def fuzz(path):
    """Read many mutations of `path`, each for at most SECONDS. Runs in a process of its own."""
    write, read, refusals = READERS[path.name]
    config = config_of(*POINTS, f'--logdir={path.parent}')
    config.channels = 2
    write(path, config)
    content = path.read_bytes()
    read(path, config)
    counts = {'read': 0, 'refused': 0}
    warnings.simplefilter('ignore')

    @settings(
        max_examples=TIMES or 200,
        derandomize=not TIMES,
        phases=list(Phase) if TIMES else [Phase.generate],  # shrinking a failing input takes minutes
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(EDIT, min_size=1, max_size=8), st.none() | st.integers(0, 99))
    def once(edits, member):
        whole = member is None or path.suffix == '.parquet'
        path.write_bytes(edited(content, edits) if whole else repacked(content, edits, member))
        signal.alarm(SECONDS)
        try:
            read(path, config)
            counts['read'] += 1
        except refusals as error:
            assert '\n' not in str(error)
            counts['refused'] += 1
        signal.alarm(0)
        for other in path.parent.glob('ckpt.bad.pt'):
            other.unlink()

    with open('/proc/self/statm') as file:
        limit = 2 * MEMORY + int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # protects the machine
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    once()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(counts, f'{grown / 2**20:.0f} MiB', file=sys.stderr)
    assert grown < MEMORY and sum(counts.values()) >= (TIMES or 200) and min(counts.values()) > 0
    sys.exit()


@pytest.mark.parametrize('name', READERS)
def test_mutated_bytes(tmp_path, name):
    if name.endswith('.parquet'):
        pytest.importorskip('pyarrow')
    (tmp_path / 'run').mkdir()
    child = Forked(log=tmp_path / 'log', before=partial(fuzz, tmp_path / 'run' / name))
    assert child.status(None) == 0, child.error()[-6000:]
