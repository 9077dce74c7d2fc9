"""The processes that torchrun starts: their ranks, shares of the work, sums and agreements. One alone is rank 0 of 1.

Collectives are called by every rank in the same order. A rank that dies ends them all, by torchrun, which may then
start them anew (--max-restarts).
"""

import contextlib
import datetime
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

# For one rank to wait for another: rank 0 may be building statistics. Dead ranks are torchrun's to notice.
TIMEOUT = datetime.timedelta(hours=6)


class LostRank(Exception):
    """Another rank has gone, so that this one cannot go on."""


# Kinds of device whose processes can share the work -> how they talk; CPU tensors go between them too.
BACKENDS = {'cpu': 'gloo', 'cuda': 'cpu:gloo,cuda:nccl', 'xpu': 'cpu:gloo,xpu:xccl'}


def launched():
    """How many processes torchrun, or another that sets its variables, has started; 0 where none of them has."""
    return int(os.environ.get('WORLD_SIZE') or 0)


def local_rank():
    """This process's place among those of its machine, from 0."""
    return int(os.environ.get('LOCAL_RANK') or 0) if launched() else 0


def start(device):
    """Join the other ranks: NCCL between GPUs, gloo between CPUs. All but rank 0 fall silent but for errors.

    Raises ValueError where this machine has fewer GPUs than ranks, or all were sent to one.
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
    """What may `start`; at its end the ranks part. Raises LostRank in place of what a collective says of a lost one."""
    try:
        yield
    except RuntimeError as error:
        if world() > 1 and re.search('gloo|nccl|connection', str(error), re.IGNORECASE):
            raise LostRank('another process has gone: see what it said, or torchrun of it') from error
        raise
    finally:
        if grouped():
            dist.destroy_process_group()


def rank():
    """Of this process, from 0; known before `start` and after the ranks have parted."""
    return int(os.environ.get('RANK') or 0) if launched() else 0  # a RANK alone is not torchrun's


def grouped():
    """Whether this process has joined others, or torchrun has started it alone."""
    return dist.is_available() and dist.is_initialized()


def world():
    """How many processes there are."""
    return dist.get_world_size() if grouped() else 1


def share(n):
    """The slice of n things in order that is this rank's; shares differ by one at most, larger ones first."""
    each, more = divmod(n, world())
    first = rank() * each + min(rank(), more)
    return slice(first, first + each + (rank() < more))


def parallel(module, accumulates):
    """A module whose backward averages the gradients over the ranks, or the module itself in a process alone.

    accumulates: whether some of its passes will be `unsynced`, which torch does not allow of a static graph.
    """
    if not grouped():
        return module
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = 'forward_sync_buffers' if 'forward_sync_buffers' in known else 'broadcast_buffers'  # before torch 2.15
    options = {'gradient_as_bucket_view': True, 'static_graph': not accumulates, buffers: False}
    return DistributedDataParallel(module, **options)


def unsynced(module):
    """A context for the passes of a `parallel` module whose gradients are to be averaged with those of a later one."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()


def all_sum(x):
    """x, in place, summed over the ranks; on its device, which is not waited for."""
    if world() > 1:
        dist.all_reduce(x)
    return x


def whole(part, where, n):
    """[n, ...] of every rank's rows, `part` being this one's at the indices or slice `where`."""
    x = part.new_zeros(n, *part.shape[1:])
    x[where] = part
    return all_sum(x)


def highest(value):
    """The largest of the ranks' values, int; waits for all."""
    value = torch.tensor(value)
    if world() > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def any_rank(flag):
    """Whether `flag` is true for any rank; waits for all."""
    return bool(highest(int(flag)))


def from_main(value):
    """Rank 0's value, of any kind that pickles."""
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def same(value):
    """Whether every rank has the same value, of any kind that pickles."""
    values = [None] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values.count(values[0]) == len(values)


@contextlib.contextmanager
def _in_turn(turn, turns):
    for _ in range(turn):
        any_rank(False)  # waits for those before
    yield
    for _ in range(turn + 1, turns):
        any_rank(False)


def main_first():
    """Rank 0 goes through the block before the others, which find what it has written where all of them look."""
    return _in_turn(0 if rank() == 0 else 1, 2)


def first_here():
    """Rank 0, then the first rank of each other machine, then the rest: each finds what was written on its machine.

    The machines may share the place, and are not in each other's way if they do.
    """
    return _in_turn(0 if rank() == 0 else 1 if local_rank() == 0 else 2, 3)


class Consensus:
    """Flags that any rank may raise, heard by all at the same call: the next one, so that no step waits for them.

    A process alone hears itself at once.
    """

    def __init__(self):
        self.pending = None

    def __call__(self, *flags):
        """The flags to act upon now, a list of bool, having raised those given."""
        if world() == 1:
            return list(flags)
        heard = [False] * len(flags)
        if self.pending:
            work, counts = self.pending
            work.wait()
            heard = [bool(count) for count in counts]
        counts = torch.tensor([int(flag) for flag in flags])
        self.pending = dist.all_reduce(counts, async_op=True), counts
        return heard
