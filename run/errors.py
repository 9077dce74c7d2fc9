"""Two of the errors that end a run in one line: wrong flags, and too little memory.

A module that cannot read something has an error of its own: CheckpointError, DataError, ScoreError. A bug of this
program ends in a traceback.
"""

import contextlib

import torch


class UsageError(ValueError):
    """Flags are wrong, or do not go together. The message names them."""


class OutOfMemory(Exception):
    """Memory ran out. The message says which flag to lower or raise."""


@contextlib.contextmanager
def usage():
    """Raise the ValueErrors of a block as UsageError. Use it only around checks of flags."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def ran_out(error):
    """Return whether an error says that memory ran out, GPU or other."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or 'DefaultCPUAllocator' in str(error)


@contextlib.contextmanager
def memory(remedy):
    """Raise OutOfMemory, naming the remedy, if a block runs out of memory, GPU or other. The innermost block counts."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        reason = ' '.join(str(error).split()).split('. GPU')[0]
        raise OutOfMemory(f'out of memory ({reason}): {remedy}') from error
