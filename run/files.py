"""Files that are either whole or as they were before, on every platform."""

import contextlib
import errno
import os
import shutil
import time

# What a file system says that has no locks, or no fsync of a folder.
UNSUPPORTED = [
    code for code, name in errno.errorcode.items() if name in ('ENOSYS', 'ENOLCK', 'EOPNOTSUPP', 'ENOTSUP', 'EINVAL')
]
PATIENCE = 5.0 if os.name == 'nt' else 0.0  # seconds; Windows replaces no file that another process has open


@contextlib.contextmanager
def replacing(path, durable=False, first=lambda temporary: None):
    """Give a temporary path that becomes `path` at the end, so that no file or folder half-written passes for whole.

    durable: a file survives a loss of power from then on. first: called with the temporary path, whole, before it
    becomes `path`. On any error the temporary file or folder is removed, and `path` is what it was.
    """
    temporary = f'{path}.tmp'
    try:
        yield temporary
        if durable:
            _sync(temporary, os.O_RDWR)
        first(temporary)
        replace(temporary, path)
        if durable and hasattr(os, 'O_DIRECTORY'):  # Windows opens no folder
            _sync(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    finally:
        remove(temporary)


def write_text(path, text):
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary, open(temporary, 'w') as file:
        file.write(text)


def replace(source, target):
    """os.replace, which on Windows waits for those that read the target: a run that samples, or a virus scanner."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)


def remove(path):
    """Remove a file or a folder, if it is there and can be removed."""
    with contextlib.suppress(OSError):
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.remove(path)


def link(path, other):
    """Have a file at another path as well: a second name for the same bytes, or a copy on a file system without."""
    with replacing(other) as temporary:
        remove(temporary)
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def _sync(path, mode):
    opened = os.open(path, mode)
    try:
        os.fsync(opened)
    except OSError as error:
        if not os.path.isdir(path) or error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(opened)
