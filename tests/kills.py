"""Make a process die by SIGKILL. Install one before main.py runs; `call` names a function, such as 'os.replace'."""

import io
import os
import pkgutil
import random
import signal
import sys


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def _replace(call, wrap):
    owner, _, name = call.rpartition('.')
    owner = pkgutil.resolve_name(owner)
    setattr(owner, name, wrap(getattr(owner, name)))


def on_call(call, nth=1, before=True):
    """Die at the nth call, before or after it."""
    count = iter(range(1, nth))

    def wrap(original):
        def wrapped(*args, **kwargs):
            last = next(count, None) is None
            if last and before:
                die()
            result = original(*args, **kwargs)
            if last:
                die()
            return result

        return wrapped

    _replace(call, wrap)


def halfway_through_a_write(call, file_at, nth=1):
    """Die when the nth call has written half of its bytes. file_at: the index of its argument that is the file."""
    count = iter(range(1, nth))

    def wrap(original):
        def wrapped(*args, **kwargs):
            if next(count, None) is not None:
                return original(*args, **kwargs)
            file, buffer = args[file_at], io.BytesIO()
            original(*args[:file_at], buffer, *args[file_at + 1 :], **kwargs)
            file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
            file.flush()
            die()

        return wrapped

    _replace(call, wrap)


def at_random(call, seed, events):
    """Die at a random one of `events` calls and returns of functions, Python's or C's, after the first `call`."""
    left = random.Random(seed).randrange(events)

    def count(*_):
        nonlocal left
        left -= 1
        if left < 0:
            die()

    def wrap(original):
        def wrapped(*args, **kwargs):
            sys.setprofile(count)
            return original(*args, **kwargs)

        return wrapped

    _replace(call, wrap)
