"""What a full disk or an administrator takes from a process, for the length of a test."""

import contextlib
import resource
import subprocess

import pytest


@contextlib.contextmanager
def mounted(folder, size):
    """A tmpfs at `folder`, unmounted whatever happens; skips where mounting is not allowed."""
    folder.mkdir()
    try:
        subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'mounting a tmpfs is not allowed here: {error}')
    try:
        yield folder
    finally:
        subprocess.run(['umount', '--lazy', folder], check=True)


@contextlib.contextmanager
def read_only(folder):
    """A mounted `folder` that nobody can write, not even root."""
    subprocess.run(['mount', '-o', 'remount,ro', folder], check=True)
    try:
        yield
    finally:
        subprocess.run(['mount', '-o', 'remount,rw', folder], check=True)


@contextlib.contextmanager
def files_of_at_most(n):
    """No file written by this process becomes longer than n bytes: EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
