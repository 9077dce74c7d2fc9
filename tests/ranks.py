"""Start several processes of main.py that share its work, as torchrun would."""

import os
import socket
from functools import partial

from runs import Forked


def as_rank(rank, world, port, before=None):
    """Set what torchrun sets, then call `before`."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1')
    os.environ['MASTER_PORT'] = str(port)
    if before:
        before()


class Ranks(list):
    """`Forked` processes with the same arguments and --parallel. before: rank -> function that it calls first."""

    def __init__(self, world, *argv, log, before=None):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        for rank in range(world):
            first = partial(as_rank, rank, world, port, (before or {}).get(rank))
            self.append(Forked(*argv, '--parallel', log=f'{log}.{rank}', before=first))

    def status(self, timeout=120):
        """Return the exit status of each."""
        return [rank.status(timeout) for rank in self]

    def error(self):
        """Return what all of them wrote to stderr."""
        return ''.join(rank.error() for rank in self)
