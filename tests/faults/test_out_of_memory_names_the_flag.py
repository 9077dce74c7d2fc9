"""If memory runs out, one line names the flag that helps: for training, previews, drawing or scoring."""

import pytest
import torch
from conftest import TINY
from runs import one_line

CUDA = torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 3 GiB.')
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: 8 bytes.")
TRAINING, DRAWING = 'lower --batch_size or raise --grad_accum', 'lower --sample_batch_size'
WHERE = [
    ('train.Run.update', ['--train', '--logdir=other'], TRAINING),
    ('torch.randn', ['--train', '--logdir=other'], 'lower --sample_size'),
    ('train.Run.preview', ['--train', '--logdir=other', '--sample_step=2'], 'lower --sample_size'),
    ('draw.walk.denoise', ['--train', '--logdir=other', '--eval_step=2', '--feature_net=classifier'], DRAWING),
    ('draw.walk.denoise', ['--sample'], DRAWING),
    ('draw.walk.denoise', ['--eval', '--feature_net=classifier'], DRAWING),
    ('nll.variational_term', ['--nll'], DRAWING),
    ('draw.walk.denoise', ['--figure=progressive'], DRAWING),
]


@pytest.mark.parametrize('error', [CUDA, CPU, MemoryError('Unable to allocate 2.00 GiB')], ids=['CUDA', 'CPU', 'numpy'])
@pytest.mark.parametrize('place, argv, remedy', WHERE, ids=[' '.join(argv) for _, argv, _ in WHERE])
def test_the_line(here, cli, monkeypatch, error, place, argv, remedy):
    assert cli(*TINY, '--train', '--logdir=run')[0] == 0

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(place, fail)
    status, _, said = cli(*TINY, '--logdir=run', *argv)
    assert status == 1 and one_line(said).endswith(f'): {remedy}') and 'out of memory (' in said
    assert 'total capacity' not in said
