"""Whatever becomes of its bytes, a checkpoint, a zip of images or statistics are read or refused, in bounded memory.

FUZZ=10000 makes so many mutated inputs of each, other ones every time, in place of 200.
"""

import io
import os
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from runs import config_of, forked

import build
import checkpoint
import dataset
import sample
import score
import train

TIMES = int(os.environ.get('FUZZ', 0))
SECONDS, BYTES = 20, 2**31  # of one input
EDITS = st.lists(
    st.tuples(st.sampled_from(['flip', 'set', 'cut', 'insert', 'repeat', 'number']), st.floats(0, 1), st.integers(0, 255)),
    min_size=1,
    max_size=8,
)


def edited(content, edits):
    """Bytes with some flipped, set, cut out, put in, repeated, or taken for a number and made large."""
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
    """A zip of which one member is edited and its CRC is right again."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, 'w') as after:
        names = before.namelist()
        for name in names:
            inside = before.read(name)
            after.writestr(name, edited(inside, edits) if name == names[member % len(names)] else inside)
    return buffer.getvalue()
