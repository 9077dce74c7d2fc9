"""--device takes any device of torch; everything runs even on one with no float64, generators or autocast."""

import pytest
import torch
from conftest import TINY
from runs import config_of
from torch.utils._python_dispatch import TorchDispatchMode

import dataset
from dataset import loader
from draw.noise import Noise
from run import checks, hardware

aten = torch.ops.aten


class Device(TorchDispatchMode):
    """Make torch's meta device refuse float64, as an Apple GPU does. It computes nothing.

    Copies from it to the CPU are zeros.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        source = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if func.overloadpacket is aten.to:  # inference mode does not split it up
            with self:
                return func.decompose(*args, **kwargs)
        if func in (aten._local_scalar_dense.default, aten.item.default) and source.is_meta:
            return torch.zeros((), dtype=source.dtype).item()
        if func is aten._to_copy.default and source.is_meta and kwargs.get('device', source.device).type == 'cpu':
            assert kwargs.get('dtype') in (None, source.dtype), 'a copy converts on the device it comes from'
            return torch.zeros(source.shape, dtype=source.dtype)
        if func is aten.copy_.default and args[1].is_meta and not source.is_meta:
            return source.zero_()
        out = func(*args, **kwargs)
        for made in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(made, torch.Tensor) and made.is_meta:
                assert made.dtype != torch.float64, f'{func} makes float64 on the device'
        return out


class PlainAdam(torch.optim.Adam):
    """Adam without the fused kernel, which only the meta device lacks."""

    def __init__(self, parameters, lr, fused):
        super().__init__(parameters, lr)

    def step(self):
        del self.found_inf
        super().step()


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(hardware, 'device', lambda config: torch.device('meta'))
    monkeypatch.setattr(torch.optim, 'Adam', PlainAdam)
    return Device()


OBJECTIVES = [
    ['--random_flip', '--sample_step=2'],
    ['--cond', '--antithetic_t', '--grad_accum=2'],
    ['--loss=hybrid', '--var_type=learned_range', '--t_sampler=loss_aware'],
    ['--loss=min_snr', '--mean_type=v', '--prior=data', '--sample_step=2'],
    ['--mean_type=xprev', '--clip_denoised', '--sample_step=2'],
    ['--dataset=moons', '--net=point_mlp', '--sample_step=2'],
]


@pytest.mark.parametrize('flags', OBJECTIVES, ids=' '.join)
def test_no_float64_in_training(device, cli, tmp_path, flags):
    with device:
        assert cli(*TINY, *flags, '--train', f'--logdir={tmp_path}')[0] == 0


@pytest.fixture
def trained(cli, tmp_path):
    assert cli(*TINY, '--train', f'--logdir={tmp_path / "run"}')[0] == 0
    return f'--logdir={tmp_path / "run"}'


@pytest.mark.parametrize(
    'mode',
    [
        ['--sample', '--sample_batch_size=0'],
        ['--sample', '--eta=0', '--sample_steps=4'],
        ['--figure=progressive'],
        ['--figure=interpolate'],
        ['--eval', '--feature_net=classifier'],
        ['--nll', '--nll_steps=4'],
        ['--nll', '--weights=net'],
    ],
    ids=' '.join,
)
def test_no_float64_in_other_modes(here, trained, device, cli, mode):
    with device:
        status, _, error = cli(trained, *mode, '--num_images=5', '--precision=fp32')
    assert status == 0, error


@pytest.mark.parametrize('kind', ['cpu', 'meta'])
def test_memory_is_pinned_for_cuda_alone(monkeypatch, kind):
    pinned = []

    class Loader(loader.DataLoader):
        def __init__(self, *args, pin_memory, **kwargs):
            pinned.append(pin_memory)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(loader, 'DataLoader', Loader)
    monkeypatch.setattr(loader, 'RESIDENT_BYTES', 0)
    data = dataset.load('digits', '', 8)
    next(loader.batches(data, 8, 0, 0, torch.device(kind), True, 0))
    next(loader.in_order(data))
    assert pinned == [False, False]


@pytest.mark.parametrize(
    'asked, found, count, chosen',
    [
        ('auto', None, 0, 'cpu'),
        ('auto', 'mps', 1, 'mps'),
        ('auto', 'xpu', 2, 'xpu'),
        ('cpu', 'cuda', 2, 'cpu'),
        ('cpu:0', 'cuda', 2, 'cpu'),
        ('cuda', 'cuda', 2, 'cuda'),
        ('cuda:1', 'cuda', 2, 'cuda:1'),
        ('cuda:2', 'cuda', 2, None),
        ('cuda', 'mps', 1, None),
        ('mps', None, 0, None),
        ('graphics card', 'cuda', 1, None),
    ],
)
def test_which_device_is_taken(monkeypatch, asked, found, count, chosen):
    monkeypatch.setattr(
        torch.accelerator, 'current_accelerator', lambda check_available: torch.device(found) if found else None
    )
    monkeypatch.setattr(torch.accelerator, 'device_count', lambda: count)
    config = config_of(f'--device={asked}')
    if chosen:
        assert hardware.device(config) == torch.device(chosen)
    else:
        with pytest.raises(ValueError, match=f'--device={asked}: .* here it is one of auto, cpu'):
            hardware.device(config)


def test_precision_of_a_device_that_is_neither_cpu_nor_cuda(device):
    config = config_of(*TINY, '--precision=auto')
    assert hardware.precision(config) == torch.float32
    with hardware.autocast(config):
        pass
    config.precision = 'bf16'
    with pytest.raises(ValueError, match='--precision=bf16: torch has no autocast for meta'):
        checks.check(config)


def test_an_error_of_a_device_that_has_generators_is_not_taken_for_a_lack_of_them(monkeypatch):
    def broken(device=None, plain=torch.Generator):
        if device is None:
            return plain()
        raise RuntimeError('CUDA error: an illegal memory access was encountered')

    monkeypatch.setattr(torch, 'Generator', broken)
    with pytest.raises(RuntimeError, match='illegal memory access'):
        Noise(0, [0], (1,), torch.device('cpu'))
