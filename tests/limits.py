"""Take from a process, for the length of a test, what a full disk or an administrator takes."""

import contextlib
import resource
import subprocess

import pytest


@contextlib.contextmanager
def mounted(folder, size):
    """Mount a tmpfs at `folder`, and always unmount it at the end. Skips the test if mounting is not allowed."""
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
    """Mount `folder` so that nobody can write it, not even root."""
    subprocess.run(['mount', '-o', 'remount,ro', folder], check=True)
    try:
        yield
    finally:
        subprocess.run(['mount', '-o', 'remount,rw', folder], check=True)


@contextlib.contextmanager
def files_of_at_most(n):
    """Let this process write no file longer than n bytes; more raises EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
