"""The processes that torchrun starts: ranks, shares of the work, sums and agreements. A single process is rank 0 of 1.

Every rank must call the collectives in the same order. If a rank dies, torchrun ends all of them, and may start them
again (--max-restarts).
"""

import contextlib
import datetime
import gc
import importlib
import inspect
import logging
import os
import re
import sys
import time
import uuid

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from run import progress

# How long a rank waits for another: rank 0 may be building statistics. It is torchrun that notices dead ranks.
TIMEOUT = datetime.timedelta(hours=6)


class LostRank(Exception):
    """Another rank has died, so that this one cannot go on."""


# Kinds of device whose processes can share the work -> their backend, which must also exchange CPU tensors.
BACKENDS = {'cpu': 'gloo', 'cuda': 'cpu:gloo,cuda:nccl', 'xpu': 'cpu:gloo,xpu:xccl'}


def launched():
    """Return how many processes torchrun, or a launcher that sets its variables, started; 0 without a launcher."""
    return int(os.environ.get('WORLD_SIZE') or 0)


def local_rank():
    """Return this process's index among those of its machine, from 0."""
    return int(os.environ.get('LOCAL_RANK') or 0) if launched() else 0


def start(device):
    """Join the other ranks: NCCL between GPUs, gloo between CPUs. All ranks but 0 then print only errors.

    Raises ValueError if ranks cannot share this kind of device, exceed this machine's GPUs, or were all sent to one.
    """
    if device.type not in BACKENDS:
        raise ValueError(f'--parallel: processes cannot share work on {device.type}; run one, or use --device=cpu')
    if device.index is not None and launched() > 1:
        raise ValueError(f'--device={device} is one device for {launched()} processes: use --device={device.type}')
    if device.type != 'cpu':
        count = torch.accelerator.device_count()
        if local_rank() >= count:
            raise ValueError(f'local rank {local_rank()}, but {count} GPUs: lower --nproc_per_node')
        if device.index is None:
            torch.accelerator.set_device_index(local_rank())
    # DistributedDataParallel imports this. Imported later, its functions would keep the group as the default of an
    # argument, and with it threads that can abort the process at its end.
    importlib.import_module('torch.distributed.nn.functional')
    backend = BACKENDS[device.type]
    store, this, n = next(dist.rendezvous('env://', timeout=TIMEOUT))
    dist.init_process_group(backend, store=_fresh_store(store, this, n), rank=this, world_size=n, timeout=TIMEOUT)
    if rank():
        logging.getLogger().setLevel(logging.ERROR)
        progress.silence()
        sys.stdout = open(os.devnull, 'w')  # noqa: SIM115


def _fresh_store(store, this, n):
    """Give a part of torchrun's store that no rank of an earlier start has written to.

    torch keeps the starts apart by TORCHELASTIC_RESTART_COUNT, which counts the restarts of one machine alone: after a
    failure elsewhere the living would find what the dead left (pytorch/pytorch#108158, #135712). So rank 0 makes up a
    name. Each other rank asks for it under a name of its own, so that the answer to a rank that died is never taken.
    """
    name = uuid.uuid4().hex
    if this:
        store.set(f'asks/{this}', name)
        name = store.get(f'answer/{name}').decode()  # waits for it
        store.set(f'takes/{name}/{this}', '')
    missing = [] if this else list(range(1, n))
    while missing:
        for other in missing:
            if store.check([f'asks/{other}']):
                store.set(f'answer/{store.get(f"asks/{other}").decode()}', name)
        missing = [other for other in missing if not store.check([f'takes/{name}/{other}'])]
        time.sleep(0.01)
    return dist.PrefixStore(name, store)


@contextlib.contextmanager
def joined():
    """Around code that may call `start`: leave the group at its end. Raises LostRank if a collective lost a rank."""
    try:
        yield
    except RuntimeError as error:
        if world() > 1 and re.search('gloo|nccl|connection', str(error), re.IGNORECASE):
            raise LostRank('another process has died: see its output, or that of torchrun') from error
        raise
    finally:
        if grouped():
            gc.collect()  # a network that is still in a cycle would keep the group's threads until the process exits
            dist.destroy_process_group()


def rank():
    """Return the rank of this process, from 0. It is known before `start` and after the group has ended."""
    return int(os.environ.get('RANK') or 0) if launched() else 0  # RANK alone is not torchrun's


def grouped():
    """Return whether this process is in a group; torchrun may also start a group of one."""
    return dist.is_available() and dist.is_initialized()


def world():
    """Return the number of processes."""
    return dist.get_world_size() if grouped() else 1


def share(n):
    """Return this rank's slice of n things in order. Shares differ by at most one; the larger ones come first."""
    each, more = divmod(n, world())
    first = rank() * each + min(rank(), more)
    return slice(first, first + each + (rank() < more))


def parallel(module, accumulates):
    """Return a module whose backward averages gradients over the ranks, or the module itself if not in a group.

    accumulates: whether some of its passes will be `unsynced`, which torch does not allow with a static graph.
    """
    if not grouped():
        return module
    accepts = inspect.signature(DistributedDataParallel).parameters
    buffers = 'forward_sync_buffers' if 'forward_sync_buffers' in accepts else 'broadcast_buffers'  # before torch 2.15
    options = {'gradient_as_bucket_view': True, 'static_graph': not accumulates, buffers: False}
    return DistributedDataParallel(module, **options)


def unsynced(module):
    """Return a context for passes of a `parallel` module that leave the averaging of gradients to a later pass."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()


def all_sum(x):
    """Sum x over the ranks, in place and on its device, without waiting for the device. Returns x."""
    if world() > 1:
        dist.all_reduce(x)
    return x


def whole(part, where, n):
    """Return the rows of all ranks, [n, ...]. part: this rank's rows. where: their indices or slice."""
    x = part.new_zeros(n, *part.shape[1:])
    x[where] = part
    return all_sum(x)


def highest(value):
    """Return the largest of the ranks' values, int. Waits for all ranks."""
    value = torch.tensor(value)
    if world() > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def any_rank(flag):
    """Return whether `flag` is true on any rank. Waits for all ranks."""
    return bool(highest(int(flag)))


def from_main(value):
    """Return rank 0's value, of any type that pickles."""
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def same(value):
    """Return whether every rank has the same value, of any type that pickles."""
    values = [None] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values.count(values[0]) == len(values)


@contextlib.contextmanager
def _in_turn(turn, turns):
    for _ in range(turn):
        any_rank(False)  # wait for the ranks before
    yield
    for _ in range(turn + 1, turns):
        any_rank(False)


def main_first():
    """Run the block on rank 0 before the others, which then find what it wrote in a folder that all ranks share."""
    return _in_turn(0 if rank() == 0 else 1, 2)


def first_here():
    """Run the block on rank 0, then on the first rank of each other machine, then on the rest.

    Each rank thus finds what was written on its machine, whether or not the machines share a folder.
    """
    return _in_turn(0 if rank() == 0 else 1 if local_rank() == 0 else 2, 3)


class Consensus:
    """Flags that any rank may raise. All ranks see them at the next call, so that no step waits for the exchange.

    A single process sees its own flags at once.
    """

    def __init__(self):
        self.pending = None

    def __call__(self, *flags):
        """Raise these flags; return the flags to act upon now, a list of bool."""
        if world() == 1:
            return list(flags)
        raised = [False] * len(flags)
        if self.pending:
            work, counts = self.pending
            work.wait()
            raised = [bool(count) for count in counts]
        counts = torch.tensor([int(flag) for flag in flags])
        self.pending = dist.all_reduce(counts, async_op=True), counts
        return raised


class Alarm:
    """A timer that is true, on rank 0 only, once `minutes` have passed since it was last true; never if they are 0."""

    def __init__(self, minutes):
        self.seconds = 60 * minutes if rank() == 0 else 0
        self.last = time.monotonic()

    def __call__(self):
        if not 0 < self.seconds <= time.monotonic() - self.last:
            return False
        self.last = time.monotonic()
        return True
