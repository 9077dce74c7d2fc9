"""Make batches of a data set on the device.

A small set is decoded once and stays on the device. Worker processes decode a large one as training goes on.
Either way the order of an epoch depends only on (seed, epoch), and the device flips and normalises each batch.
"""

import contextlib
import multiprocessing
import os
import signal
import threading

import numpy as np
import torch
from torch.utils.data import DataLoader

from dataset.images import DataError, Images

RESIDENT_BYTES = 2**30  # a decoded data set up to this size is kept on the device


def index_batches(n, batch_size, seed, step):
    """Yield int64 [batch_size] indices without end, from training step `step` on. Drop the remainder of an epoch."""
    per_epoch = n // batch_size
    while True:
        epoch, position = divmod(step, per_epoch)
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n))
        yield from order[: per_epoch * batch_size].view(per_epoch, batch_size)[position:]
        step += per_epoch - position


def batches(
    data, batch_size, seed, step, device, random_flip, num_workers, loader_timeout=0, share=slice(None), watch=None
):
    """Yield (x, y) without end, from training step `step` on: x float on `device`, y int64 [B] or None.

    data: `Images`, which give x [B, C, H, W] in [-1, 1], or `Points`, which give x [B, D]. The indices depend only on
    (seed, step). Flips are drawn from torch's generator when the caller takes the batch. share: the slice of each batch
    to yield; its other items are not read, but flips are drawn for all. watch: as in `decode_all`, for a small set.

    Raise DataError if the set has fewer than batch_size items, an image cannot be decoded, a worker process dies, or no
    worker brings a batch within `loader_timeout` seconds (0 for no limit).
    """
    check_batch_size(data, batch_size)
    indices = (chosen[share] for chosen in index_batches(len(data), batch_size, seed, step))
    if data.nbytes <= RESIDENT_BYTES:
        stream = _resident(data, indices, device, num_workers, loader_timeout, watch)
    else:
        stream = _streamed(data, indices, device, num_workers, loader_timeout)
    mirrors = random_flip and isinstance(data, Images)
    return (
        (data.prepare(x, torch.rand(batch_size, device=device)[share] < 0.5 if mirrors else None), y) for x, y in stream
    )


def check_batch_size(data, batch_size):
    """Raise DataError if a data set has fewer items than a batch."""
    if len(data) < batch_size:
        raise DataError(f'--batch_size={batch_size} is more than the {len(data)} {data.unit} there are')


def _resident(data, indices, device, num_workers, loader_timeout, watch):
    # Nothing refers to the tensors on the host after this line, so that their memory is freed.
    x, y = (None if part is None else part.to(device) for part in decode_all(data, num_workers, loader_timeout, watch))
    for chosen in indices:
        if x.is_cuda:
            chosen = chosen.pin_memory()  # else the copy might wait for the steps that are queued
        chosen = chosen.to(device, non_blocking=x.is_cuda)
        yield x[chosen], None if y is None else y[chosen]


def _streamed(data, indices, device, num_workers, loader_timeout):
    pinned = device.type == 'cuda'  # other devices cannot pin memory, and must wait for a copy
    for x, y in _decoded(data, indices, num_workers, loader_timeout, pinned):
        yield x.to(device, non_blocking=pinned), None if y is None else y.to(device, non_blocking=pinned)


def decode_all(data, num_workers=0, loader_timeout=0, watch=None):
    """Return the whole set in order: uint8 [N, C, H, W] or points, and labels int64 [N] or None. Raise DataError.

    watch: a function of (batches, data) that yields the same batches and shows the progress, or None.
    """
    parts = in_order(data, num_workers, loader_timeout)
    x, y = zip(*(watch(parts, data) if watch else parts), strict=True)
    return torch.cat(x), torch.cat(y) if data.num_classes else None


def pick(data, indices):
    """Return the items of `indices`, int64 [n], without labels: uint8 [n, C, H, W] or points. Raise DataError."""
    ((x, _),) = _decoded(data, [indices])
    return x


def in_order(data, num_workers=0, loader_timeout=0, batch_size=256, share=slice(None)):
    """Yield batches (uint8 [n, C, H, W] or points, int64 [n] or None), each item of `share` once. Raise DataError."""
    few = data.nbytes < 2**22  # decoding takes less time than starting worker processes
    indices = [chosen for chosen in torch.arange(len(data))[share].split(batch_size) if len(chosen)]
    return _decoded(data, indices, 0 if few else num_workers, loader_timeout)


def _decoded(data, indices, num_workers=0, loader_timeout=0, pinned=False):
    num_workers = min(num_workers, os.cpu_count() or 1)
    can_ring = hasattr(signal, 'SIGALRM') and threading.current_thread() is threading.main_thread()
    loader = DataLoader(
        data,
        batch_sampler=indices,
        num_workers=num_workers,
        collate_fn=_unchanged,
        worker_init_fn=_leave_signals_to_parent,
        pin_memory=pinned,
        timeout=0 if can_ring or not num_workers else loader_timeout,
        generator=torch.Generator(),  # else it would draw from the global generator
    )
    for batch in _awaited(loader, loader_timeout, can_ring):
        if isinstance(batch, DataError):
            raise batch
        yield batch


def _awaited(loader, loader_timeout, can_ring):
    """Yield the batches of a loader. Raise DataError if a worker process dies or no batch comes for too long."""
    others = multiprocessing.active_children()
    with _without_its_handler():
        stream = iter(loader)
    workers = set(multiprocessing.active_children()).difference(others)
    while True:
        try:
            with _alarm(loader_timeout if workers and can_ring else 0):
                batch = next(stream, None)
        except (EOFError, OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith(('DataLoader ', 'Pin memory ')):
                raise
            for worker in workers:
                worker.kill()  # a worker that hangs would hold up the end of the run
            late = isinstance(error, TimeoutError) or 'timed out after' in str(error)
            silent = f'no batch came from the worker processes for {loader_timeout:g} seconds'
            what = silent if late else f'a worker process died ({error!r})'
            raise DataError(f'{what}: check memory and disk, run it again, or lower --num_workers') from error
        if batch is None:
            return
        yield batch


@contextlib.contextmanager
def _without_its_handler():
    # DataLoader's handler for SIGCHLD can raise anywhere in the run, even inside a checkpoint. A thread sets none.
    if not hasattr(signal, 'SIGCHLD'):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    yield
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGCHLD, before)


@contextlib.contextmanager
def _alarm(seconds):
    # DataLoader's own timeout would still wait for ever for the pixels of a process that has stopped.
    def ring(*_):
        raise TimeoutError

    if not seconds:
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _unchanged(batch):
    return batch


def _leave_signals_to_parent(worker):
    if hasattr(os, 'setpgrp'):  # Ctrl-C and torchrun send signals to the whole group: leave it
        os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
