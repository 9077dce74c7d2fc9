"""--precision: float32 is real float32 on a GPU too, and slow bf16 gives a warning."""

import pytest
import torch
from conftest import TINY
from runs import config_of

from model import UNet
from run import hardware

KINDS = torch.backends.cudnn.conv, torch.backends.cuda.matmul


@pytest.fixture
def flags_seen(monkeypatch):
    """Record what cuDNN and cuBLAS may use at each call of the network and of backward; TF32 by default."""
    seen = set()

    def spy(original):
        def call(*args, **kwargs):
            seen.add(tuple(kind.fp32_precision for kind in KINDS))
            return original(*args, **kwargs)

        return call

    before = [kind.fp32_precision for kind in KINDS]
    for kind in KINDS:
        kind.fp32_precision = 'tf32'
    monkeypatch.setattr(UNet, 'forward', spy(UNet.forward))
    monkeypatch.setattr(torch.Tensor, 'backward', spy(torch.Tensor.backward))
    yield seen
    for kind, precision in zip(KINDS, before, strict=True):
        kind.fp32_precision = precision


EXACT, TF32 = ('ieee', 'ieee'), ('tf32', 'tf32')


def test_fp32_is_no_tf32(tmp_path, cli, flags_seen):
    flags = [*TINY, f'--logdir={tmp_path}', '--precision=fp32', '--num_images=2']
    for mode in ('--train', '--sample'):
        flags_seen.clear()
        assert cli(*flags, mode)[0] == 0 and flags_seen == {EXACT}
    assert tuple(kind.fp32_precision for kind in KINDS) == TF32  # unchanged


def test_bits_per_dim_are_in_fp32_unless_asked(tmp_path, cli, flags_seen, monkeypatch):
    monkeypatch.setattr(hardware, 'computes_bf16', lambda device: True)
    flags = [*TINY, f'--logdir={tmp_path}', '--precision=auto']
    assert cli(*flags, '--train')[0] == 0 and flags_seen == {TF32}
    flags_seen.clear()
    assert cli(*flags, '--nll', '--nll_steps=2')[0] == 0 and flags_seen == {EXACT}


@pytest.mark.parametrize('native', [True, False])
def test_bf16_where_it_is_slow(tmp_path, cli, monkeypatch, native):
    monkeypatch.setattr(hardware, 'computes_bf16', lambda device: native)
    said = '--precision=bf16: this CPU does not compute in bf16 itself'
    for precision in ('bf16', 'fp32', 'auto'):
        argv = [*TINY, '--train', '--total_steps=1', f'--logdir={tmp_path / precision}', f'--precision={precision}']
        status, _, error = cli(*argv)
        assert status == 0 and error.count(said) == (precision == 'bf16' and not native)
    config = config_of('--precision=auto')
    assert hardware.precision(config) == (torch.bfloat16 if native else torch.float32)
