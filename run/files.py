"""Write files so that each is either complete or as it was before, on every platform."""

import contextlib
import errno
import os
import shutil
import tempfile
import time

# The errors of a file system that has no locks, or no fsync of folders.
UNSUPPORTED = [
    code for code, name in errno.errorcode.items() if name in ('ENOSYS', 'ENOLCK', 'EOPNOTSUPP', 'ENOTSUP', 'EINVAL')
]
PATIENCE = 5.0 if os.name == 'nt' else 0.0  # seconds; Windows cannot replace a file that is open


@contextlib.contextmanager
def replacing(path, durable=False, first=lambda temporary: None):
    """Give a temporary path that becomes `path` at the end, so that `path` is never a half-written file or folder.

    durable: whether the file then survives a loss of power. first: called with the complete temporary path, before it
    becomes `path`. On any error the temporary file or folder is removed, and `path` stays as it was.
    """
    temporary = f'{path}.tmp'
    remove(temporary)  # which a kill may have left
    try:
        yield temporary
        if durable:
            _sync(temporary, os.O_RDWR)
        first(temporary)
        replace(temporary, path)
        if durable and hasattr(os, 'O_DIRECTORY'):  # Windows cannot open folders
            _sync(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    finally:
        remove(temporary)


def write_text(path, text):
    """Write a text file in UTF-8, completely or not at all."""
    with replacing(path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
        file.write(text)


def check_folder(path):
    """Make a folder if it is missing. Raises OSError, saying what to do, if no file can be written there."""
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        remedy = 'copy the checkpoint to a folder of your own, and name it with --ckpt'
        raise OSError(f'cannot write {path}: {error.strerror}; {remedy}') from error


def replace(source, target):
    """Call os.replace. On Windows, wait for processes that read the target: a sampling run, or a virus scanner."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)


def remove(path):
    """Remove a file or folder, if it exists and can be removed."""
    with contextlib.suppress(OSError):
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.remove(path)


def link(path, other):
    """Give a file a second path: a hard link, or a copy if the file system has no links."""
    with replacing(other) as temporary:
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
