"""Two of the errors that end a run in one line: flags that cannot be, and too little memory.

What cannot be read is an error of the module that reads it: CheckpointError, DataError, ScoreError. Anything else is a
fault of this program and ends in a traceback.
"""

import contextlib

import torch


class UsageError(ValueError):
    """Flags that are wrong, or wrong together; the message names them."""


class OutOfMemory(Exception):
    """Memory ran out; the message says which flag makes do with less."""


@contextlib.contextmanager
def usage():
    """Around checks of flags, and nothing else: raises their ValueErrors as UsageError."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


@contextlib.contextmanager
def memory(remedy):
    """Raise OutOfMemory, naming the remedy, if the memory of the GPU or the machine runs out within; the innermost one
    counts."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        ran_out = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or 'DefaultCPUAllocator' in str(error)
        if not ran_out:
            raise
        reason = ' '.join(str(error).split()).split('. GPU')[0]
        raise OutOfMemory(f'out of memory ({reason}): {remedy}') from error
