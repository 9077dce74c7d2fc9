"""Compare each fast path with plain float32, uncompiled: what it computes, not how fast."""

import builtins
import copy
import json
import os
import platform
import subprocess
import sys

import pytest
import torch
from absl.testing import flagsaver
from conftest import ROOT, TINY, largest_error
from runs import config_of, differences, load, one_line, without_logdir
from torch.utils._python_dispatch import TorchDispatchMode

import train
from bench import __main__ as bench
from bench.timing import interleaved
from draw import walk
from draw.inference import Inference
from draw.noise import Noise
from model import UNet
from networks.context_unet import ContextUNet
from networks.point_mlp import PointMLP
from run import build, compiling, inputs, labels
from run.config import replace
from run.restore import restore
from score.features import full_fp32

T = 20


def unet(ch_mult=(1, 2), attn=(1,), num_classes=None):
    """Make a network in which every weight has an effect."""
    torch.manual_seed(0)
    net = UNet(T, 32, ch_mult, attn, 1, 0.0, num_classes=num_classes).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.xavier_uniform_(module.weight)
    return net


def call_arguments(shape=(4, 3, 8, 8)):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator), torch.tensor([7]).expand(4), torch.tensor([0, 1, 2, 3])


def test_bf16_loss_and_gradient():
    """Compare them for the digits' network after some steps of training."""
    argv = [*TINY, '--ch_mult=1,2', '--lr=0.003', '--warmup=0', '--grad_clip=0', '--T=200', '--beta_T=0.1']
    plain, fast = (train.Run(config_of(*argv, f'--precision={precision}')) for precision in ('fp32', 'bf16'))
    stream = inputs.batches(plain.config, inputs.dataset(plain.config), 0)
    torch.manual_seed(0)
    for _ in range(100):
        plain.update(next(stream)[0])
    fast.net.load_state_dict(plain.net.state_dict())
    x_0 = torch.cat([next(stream)[0] for _ in range(16)])
    results = []
    for run in (plain, fast):
        torch.manual_seed(1)
        run.config.batch_size = len(x_0)
        loss, _ = run.update(x_0)
        results.append((loss.item(), torch.cat([p.grad.flatten() for p in run.trained])))
    (loss, gradient), (fast_loss, fast_gradient) = results
    assert loss < 0.6 and fast_loss == pytest.approx(loss, rel=5e-4) and fast_loss != loss
    assert torch.cosine_similarity(gradient, fast_gradient, dim=0) > 0.999


@pytest.mark.parametrize(
    'net',
    [
        unet(),
        unet(num_classes=3),
        ContextUNet(T, 32, [1, 1], img_channels=3, img_size=8, num_classes=3),
        PointMLP(T, num_classes=3),
    ],
)
def test_drawing_in_bf16_and_float32(net):
    x, t, y = call_arguments((4, 2) if isinstance(net, PointMLP) else (4, 3, 8, 8))
    y = y if net.num_classes else None
    before = copy.deepcopy(net.state_dict())
    exact, fast = (Inference(net, dtype) for dtype in (torch.float32, torch.bfloat16))
    for steps in (t, torch.tensor([0, 7, 7, T - 1])):
        with torch.no_grad():
            plain = net(x, steps.contiguous(), y)
        assert largest_error(exact(x, steps, y), plain) < 1e-5
        out = fast(x, steps, y)
        assert out.dtype == torch.float32 and out.is_contiguous() and 0 < largest_error(out, plain) < 3e-2
    assert not differences(before, net.state_dict())  # a copy was made


def test_projections_of_time_are_not_tabulated_where_that_would_outgrow_the_network():
    net = UNet(10_000, 32, [1], [], 3, 0.0)
    model = Inference(net, torch.float32)
    assert sum(p.numel() for p in model.parameters()) < 4 * sum(p.numel() for p in net.parameters())
    x, t, _ = call_arguments()
    with torch.no_grad():
        assert largest_error(model(x, t), net(x, t.contiguous())) < 1e-5


def test_a_call_and_a_chain_are_the_same_compiled_or_not():
    config = config_of(*TINY, f'--T={T}')
    x, t, _ = call_arguments()
    calls, images = [], []
    for compiled in (True, False):
        model = Inference(unet([1], []), torch.float32)
        if compiled:
            model.compile()
        calls.append(model(x, t))
        noise = Noise(0, range(len(x)), x.shape[1:], x.device)
        images.append(build.sampler(config, model)(noise(), noise=noise))
        with torch.no_grad():
            model.net.tail[-1].bias += 1  # the compiled code reads weights at each call
        assert largest_error(model(x, t), calls[-1] + 1) < 1e-5
    assert largest_error(*calls) < 1e-5 and largest_error(*images) < 1e-4


def test_batches_are_filled_up_to_the_size_that_is_compiled(monkeypatch):
    config, net = config_of(*TINY, '--sample_batch_size=3'), unet([1], [])
    config.channels = 3
    sizes, forward = [], Inference.forward
    monkeypatch.setattr(Inference, 'compile', lambda model: setattr(model, 'compiled', True))
    monkeypatch.setattr(Inference, 'forward', lambda model, x, *args: sizes.append(len(x)) or forward(model, x, *args))
    images = []
    for config.compile, expected in (('off', {2, 3}), ('on', {3})):
        sizes.clear()
        chunks = list(walk.draw(config, net, list(range(5))))
        assert [chunk for chunk, _ in chunks] == [[0, 1, 2], [3, 4]] and set(sizes) == expected
        images.append(torch.cat([x_0 for _, x_0 in chunks]))
    assert images[1].shape == (5, 3, 8, 8) and largest_error(*images) < 1e-4


def test_a_compiled_run_takes_the_same_steps_and_resumes_to_the_same_bits(tmp_path, cli):
    argv = [*TINY, '--dataset=moons', '--net=point_mlp', '--train', '--lr=0.01']  # quick to compile
    assert cli(*argv, f'--logdir={tmp_path / "plain"}')[0] == 0
    assert cli(*argv, '--compile=on', f'--logdir={tmp_path / "whole"}')[0] == 0
    assert cli(*argv, '--compile=on', '--total_steps=2', f'--logdir={tmp_path / "parts"}')[0] == 0
    assert cli(*argv, '--compile=on', f'--logdir={tmp_path / "parts"}')[0] == 0
    plain, whole, parts = (without_logdir(load(tmp_path / name)) for name in ('plain', 'whole', 'parts'))
    assert whole['step'] == 4 and not differences(whole, parts)
    assert list(plain['ema_model']) == list(whole['ema_model'])  # without the compiler's prefix
    for key, value in plain['ema_model'].items():
        torch.testing.assert_close(whole['ema_model'][key], value, atol=1e-4, rtol=0)


def test_auto_compiles_long_runs_alone(monkeypatch):
    monkeypatch.setattr(compiling, 'compile_failure', lambda kind: '')
    config = config_of('--device=cpu')
    assert not compiling.compiles(config, 1000) and compiling.compiles(config, 50_000 * 1000)
    assert not compiling.compiles(config, 1000, backward=True) and compiling.compiles(
        config, 800_000 * 128, backward=True
    )
    config.compile = 'on'
    assert compiling.compiles(config, 1) and compiling.compiles(config, 1, backward=True)
    config.compile = 'off'
    assert not compiling.compiles(config, 50_000 * 1000)


@pytest.mark.parametrize('net', build.NETWORKS)
def test_auto_knows_the_operations_of_every_network(net):
    config = config_of(*TINY, f'--net={net}', '--num_classes=3')
    few, many = (compiling.flops(replace(config, ch=ch)) for ch in (32, 64))
    assert 0 < 2 * few < many < 4.1 * few


def test_graphs_where_no_gradient_outlives_a_replay(monkeypatch):
    config = config_of('--device=cpu')
    assert compiling.options(config) == {}
    monkeypatch.setattr(compiling.hardware, 'device', lambda config: torch.device('cuda'))
    assert compiling.options(config) == {compiling.GRAPHS: True, **compiling.THRESHOLDS}
    assert compiling.options(config, parts=2) == compiling.THRESHOLDS
    monkeypatch.setattr(compiling.distributed, 'world', lambda: 2)
    assert compiling.options(config) == compiling.THRESHOLDS


def test_without_a_compiler_auto_goes_on(tmp_path):
    environment = {**os.environ, 'PATH': '/nonexistent', 'TORCHINDUCTOR_CACHE_DIR': str(tmp_path / 'cache')}
    script = 'import main; from run import compiling; compiling.COMPILE_SECONDS = dict(cpu=0); '
    script += 'main.app.run(main.main, flags_parser=main.parse_flags)'
    argv = [sys.executable, '-c', script, *TINY, '--compile=auto', '--train', '--sample', f'--logdir={tmp_path}']
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = 'WARNING: torch.compile does not work here (No working C++ compiler found'
    assert done.returncode == 0 and done.stderr.count(said) == 1 and 'Traceback' not in done.stderr, done.stderr
    assert (tmp_path / 'samples' / 'grid.png').exists()


def test_without_a_compiler_on_is_refused(tmp_path, cli, monkeypatch):
    monkeypatch.setattr(compiling, 'compile_failure', lambda kind: 'no g++')
    status, _, error = cli(*TINY, '--train', '--compile=on', f'--logdir={tmp_path / "run"}')
    assert status == 2 and '--compile=on: torch.compile does not work here (no g++). It needs' in one_line(error)
    assert not (tmp_path / 'run').exists()


def test_a_batch_that_fits(tmp_path, cli):
    assert cli(*TINY, '--train', f'--logdir={tmp_path}')[0] == 0
    argv = [f'--logdir={tmp_path}', '--sample_batch_size=0', '--device=cpu', '--num_images=70']
    config, net, _ = restore(config_of(*argv), {'sample_batch_size', 'device'})
    assert [len(x_0) for _, x_0 in walk.draw(config, net, list(range(70)))] == [64, 6]


@pytest.fixture
def bench_of(tmp_path, monkeypatch, capsys):
    """Return bench_of(*arguments) -> the figures that python -m bench prints for a tiny network."""

    def run(*argv):
        (tmp_path / 'tiny.txt').write_text('\n'.join(TINY))
        figures = tmp_path / 'figures.json'
        argv = [*argv, f'--flagfile={tmp_path / "tiny.txt"}', '--batch_size=2', '--no-compile', f'--json={figures}']
        monkeypatch.setattr(sys, 'argv', ['bench', *argv])
        with flagsaver.flagsaver():
            bench.main()
        figures, out = json.loads(figures.read_text()), capsys.readouterr().out
        assert all(row['ms'] > 0 and row['candidate'] in out for row in figures['rows'])
        return figures

    return run


@pytest.mark.parametrize('native', [False, True])
def test_the_bench_times_every_candidate_and_bf16_only_where_the_machine_computes_in_it(bench_of, monkeypatch, native):
    monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: native)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    figures = bench_of('train', 'sample', *(['ema', 'optimizer'] if native else []), '--repeats=1')
    ours = ['ours, fp32 eager', 'ours, bf16 eager'][: 1 + native]
    expected = {'train': ['diffusers', *ours], 'sample': ['diffusers', *ours]}
    if native:
        expected |= {'ema': ['diffusers', 'ours'], 'optimizer': ['torch default', 'ours, fused']}
    for task, candidates in expected.items():
        rows = [row for row in figures['rows'] if row['task'] == task]
        assert [row['candidate'] for row in rows] == candidates and rows[0]['ratio'] == 1
    assert figures['bf16_matmul_tflops' if native else 'fp32_matmul_tflops'] > 0


def test_the_bench_ends_in_time_on_a_slow_machine():
    calls = []
    (seconds, ratio, _) = interleaved({'slow': lambda: calls.append(0)}, 50, limit=0)['slow']
    assert len(calls) == 3 and seconds > 0 and ratio == 1  # two rounds to warm up, one that counts


def test_the_bench_refuses_a_reference_that_is_none(bench_of, capsys):
    with pytest.raises(SystemExit, match='2'):
        bench_of('--reference=no/such')
    assert '--reference=no/such is no checkout' in capsys.readouterr().err


def test_the_bench_names_the_machine_without_proc(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    assert 'threads of' in bench.machine()
    monkeypatch.setattr(builtins, 'open', missing)  # no /proc/cpuinfo, as on Windows and a Mac
    monkeypatch.setattr(subprocess, 'run', lambda *_, **__: subprocess.CompletedProcess([], 0, stdout='Apple M1\n'))
    assert bench.processor() == 'Apple M1'
    monkeypatch.setattr(subprocess, 'run', missing)  # no sysctl, as on Windows
    monkeypatch.setattr(platform, 'processor', lambda: 'Intel64 Family 6')
    assert bench.processor() == 'Intel64 Family 6'


class NoReads(TorchDispatchMode):
    """Fail if the host would have to wait for a GPU: for a value, or for a shape that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reads = torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags
        if func is torch.ops.aten.index.Tensor:  # by positions, not by a mask
            reads = any(index.dtype == torch.bool for index in args[1] if index is not None)
        assert not reads, f'{func} reads what is on the device'
        return func(*args, **(kwargs or {}))


OBJECTIVES = [
    ['--random_flip', '--antithetic_t'],
    ['--cond', '--num_classes=10', '--grad_accum=2', '--precision=bf16'],
    ['--loss=hybrid', '--var_type=learned_range', '--t_sampler=loss_aware'],
    ['--loss=min_snr', '--mean_type=v'],
]


@pytest.mark.parametrize('flags', OBJECTIVES)
def test_neither_a_training_nor_a_sampling_step_reads_the_device(flags):
    run = train.Run(config_of(*TINY, *flags))
    config, stream = run.config, inputs.batches(run.config, inputs.dataset(run.config), 0)
    run.update(next(stream)[0])
    sampler = build.sampler(config, Inference(run.ema, torch.float32))
    noise = Noise(0, range(2), build.shape(config), run.device)
    _, x_t, _ = next(walk := sampler.trajectory(noise(), labels.of_indices(config, range(2)), noise=noise))
    with NoReads():
        x_0, y = next(stream)
        run.update(x_0, y if config.num_classes else None)
        assert len(list(walk)) == config.T - 1
    with pytest.raises(AssertionError, match='reads'), NoReads():
        x_t[x_t > 0].sum().item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('options', [{}, compiling.OPTIONS['cuda']])
def test_the_same_images_compiled_and_graph_captured_on_a_gpu(options):
    config = config_of('--device=cuda', f'--T={T}', '--beta_T=0.5')
    x_T = torch.randn(4, 3, 8, 8, device='cuda')
    images = []
    for wanted in (None, options):
        model = Inference(unet().to('cuda'), torch.float32)
        if wanted is not None:
            model.compile(**wanted)
        noise = Noise(0, range(4), (3, 8, 8), torch.device('cuda'))
        with full_fp32(x_T.device):
            images.append(build.sampler(config, model).to('cuda')(x_T, noise=noise))
    torch.testing.assert_close(*images, atol=1e-3, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('compiled', ['off', 'on'])
@pytest.mark.parametrize('loss', [[], ['--loss=hybrid', '--var_type=learned_range', '--t_sampler=loss_aware']])
def test_a_step_on_a_gpu_waits_for_nothing(compiled, loss):
    run = train.Run(config_of('--device=cuda', f'--compile={compiled}', '--ch=64', '--batch_size=16', *loss))
    x_0 = torch.randn(16, 1, 32, 32, device='cuda')
    for _ in range(3):  # compile, record the graph, replay it
        run.update(x_0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        run.update(x_0)
    finally:
        torch.cuda.set_sync_debug_mode('default')
