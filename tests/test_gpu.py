"""What only a CUDA device can show: real float32, memory that runs out, and checkpoints that move to a CPU and back."""

import numpy as np
import pytest
import torch
from conftest import TINY, largest_error
from runs import load

from model import UNet
from score import calculate_frechet_distance
from score.features import full_fp32

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')]
CUDA = torch.device('cuda')


def test_float32_has_all_its_digits():
    torch.manual_seed(0)
    net = UNet(T=8, ch=64, ch_mult=[1, 2], attn=[1], num_res_blocks=1, dropout=0).eval()
    for p in net.parameters():  # else the last layers, near zero at first, hide the others
        torch.nn.init.normal_(p, std=0.05)
    x, t = torch.randn(4, 3, 16, 16), torch.arange(4)
    with torch.no_grad():
        exact = net.double()(x.double(), t)
        net = net.float().to(CUDA)
        with full_fp32(CUDA):
            full = net(x.to(CUDA), t.to(CUDA)).cpu()
        tf32 = net(x.to(CUDA), t.to(CUDA)).cpu()
    assert largest_error(full, exact) < 1e-5 < largest_error(tf32, exact)  # cuDNN's own choice is TF32


def test_frechet_distance_on_the_gpu():
    rng = np.random.default_rng(0)
    sides = [rng.normal(size=(300, 64)) * np.exp(rng.normal(size=64)) + i for i in range(2)]
    moments = [part for x in sides for part in (x.mean(0), np.cov(x, rowvar=False))]
    on_cpu, on_gpu = (calculate_frechet_distance(*moments, use_torch=use_torch) for use_torch in (False, True))
    assert abs(on_gpu - on_cpu) < 1e-9 * on_cpu


def test_too_little_gpu_memory_is_one_line(tmp_path, cli):
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**28 / torch.cuda.get_device_properties(0).total_memory)
    try:
        flags = [*TINY, '--device=cuda', '--img_size=32', '--ch=128', '--batch_size=1024', f'--logdir={tmp_path}']
        status, _, err = cli(*flags, '--train')
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert status == 1 and 'Traceback' not in err
    assert err.strip().splitlines()[-1].startswith('main.py: error: out of memory (CUDA out of memory')
    assert err.strip().endswith('lower --batch_size or raise --grad_accum')


@pytest.mark.parametrize('precision', ['fp32', 'auto'])
def test_a_checkpoint_goes_to_the_cpu_and_back(tmp_path, cli, precision):
    flags = [*TINY, f'--precision={precision}', f'--logdir={tmp_path}']
    for step, device in ((4, 'cuda'), (6, 'cpu'), (8, 'cuda')):
        assert cli(*flags, '--train', f'--device={device}', f'--total_steps={step}')[0] == 0
        state = load(tmp_path)
        assert state['step'] == step and all(x.isfinite().all() for x in state['net_model'].values())
        for other in ('cpu', 'cuda'):
            assert cli(*flags, '--sample', f'--device={other}')[0] == 0
