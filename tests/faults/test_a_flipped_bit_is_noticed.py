"""A flipped bit anywhere in a checkpoint is noticed or changes nothing. With a warning, the one before is used."""

import random
from pathlib import Path

import torch
from runs import differences

from run import checkpoint
from run.checkpoint import CheckpointError


def state(n):
    return {'step': n, 'weights': torch.arange(2000.0) + n, 'config': {'ch': 32, 'attn': []}}


def test_any_flipped_bit_is_noticed_or_harmless(tmp_path):
    path = tmp_path / 'ckpt.pt'
    checkpoint.save(str(path), state(1))
    content = path.read_bytes()
    noticed = 0
    for at in random.Random(0).sample(range(len(content)), 300):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            assert differences(checkpoint.load(str(path)), state(1)) == []
        except CheckpointError:
            noticed += 1
    assert noticed > 200  # the others fell into the padding of the zip


def test_the_one_before_is_used(tmp_path, caplog):
    path = Path(tmp_path / 'ckpt.pt')
    for n in (1, 2):
        checkpoint.save(str(path), state(n))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4  # in the weights
    path.write_bytes(content)
    assert checkpoint.load(str(path))['step'] == 1
    assert f'{path} is damaged: the CRC of' in caplog.text and 'using' in caplog.text
