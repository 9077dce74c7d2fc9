"""Run main.py again and again, each time killed with SIGKILL at another point, until a run ends undisturbed.

usage: kills.py KILLS FLAG... The children are forked, so that all is imported once. Prints the number of kills.
"""

import io
import os
import random
import signal
import sys

import sklearn.datasets  # noqa: F401 - for every child
import torch
import torch._dynamo  # likewise: the first optimiser imports it

import checkpoint
import main
import train


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(owner, name, nth, before=True):
    """Die at the nth call of owner.name, before or after it."""
    original, count = getattr(owner, name), iter(range(1, nth))

    def wrapped(*args, **kwargs):
        if next(count, None) is not None:
            return original(*args, **kwargs)
        if not before:
            original(*args, **kwargs)
        die()

    setattr(owner, name, wrapped)


def halfway_through_a_write(nth):
    """Die with half of the nth checkpoint's bytes written."""
    original, count = torch.save, iter(range(1, nth))

    def wrapped(state, file):
        if next(count, None) is not None:
            return original(state, file)
        buffer = io.BytesIO()
        original(state, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        die()

    torch.save = wrapped


# The points of a save in their order, then points of a step. A child saves every second step: the second save of a
# child is reached only after progress, so that the whole comes to an end.
STAGES = [
    lambda n: halfway_through_a_write(2),
    lambda n: on_call(os, 'fsync', 3),  # two a save: the file's, the folder's
    lambda n: on_call(os, 'replace', 2 + n % 2, before=True),  # the old one aside, the new one in place
    lambda n: on_call(os, 'replace', 2 + n % 2, before=False),
    lambda n: on_call(checkpoint, 'save', 2, before=False),
    lambda n: on_call(train.Run, 'update', 3 + n % 4),
    lambda n: on_call(train.Run, 'update', 3 + n % 4, before=False),
    lambda n: on_call(torch.optim.Adam, 'step', 3 + n % 4, before=False),
]


def child(argv, kill):
    torch.set_num_threads(1)
    if kill is not None:
        STAGES[kill % len(STAGES)](random.Random(kill).randrange(100))
    os._exit(main.main(main.parse_flags(['main.py', *argv])))


def run(kills, argv):
    killed = 0
    while True:
        pid = os.fork()
        if not pid:
            child(argv, killed if killed < kills else None)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            killed += 1
        else:
            print(killed)
            return os.waitstatus_to_exitcode(status)


if __name__ == '__main__':
    sys.exit(run(int(sys.argv[1]), sys.argv[2:]))
