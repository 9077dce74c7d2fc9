"""Reads and writes files that are either whole or absent; one error says what is wrong with any other."""

import hashlib
import http.client
import os
import socket
import sys
from contextlib import contextmanager
from pathlib import Path

import torch


class ScoreError(Exception):
    """A file of weights or statistics that cannot be used; the message is one line that names it and the remedy."""


class Unscorable(ScoreError, ValueError):
    """Images or statistics that cannot be scored; the message says why."""


def file_digest(path, algorithm='sha256'):
    """Computes the digest of a file, in hex digits, and reads the file in pieces. algorithm: one of hashlib."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, 'rb') as f:
        for piece in iter(lambda: f.read(1 << 20), b''):
            digest.update(piece)
    return digest.hexdigest()


def check_writable(path, why='is missing'):
    """Raises ScoreError if `path` cannot be written. Call it before the hours that making the content may take."""
    folder = Path(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else 'it is read-only'
    except OSError as error:
        reason = error.strerror
    if reason:
        raise ScoreError(f'{path} {why}, and {folder} cannot be written ({reason}): make it writable')


@contextmanager
def atomic_write(path):
    """Yields a binary file that becomes `path` at the end, whole and synced. If there is an error, nothing is left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
    try:
        with open(partial, 'wb') as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def download(url, path, sha256=None):
    """Downloads a file, with a bar if stderr is a terminal. It gets its name once it is whole.

    sha256: the first digits that its digest must have. Raises OSError if the connection fails or brings nothing for 30
    seconds, RuntimeError for another digest.
    """
    silent = os.environ.get('TQDM_DISABLE', '0').lower() not in ('', '0', 'false')
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        torch.hub.download_url_to_file(url, str(path), sha256, progress=sys.stderr.isatty() and not silent)
    except http.client.HTTPException as error:
        raise OSError(f'{type(error).__name__}: {error}') from error
    finally:
        socket.setdefaulttimeout(timeout)


def published_weights(what, url, name, sha256, path=None):
    """Returns the file of published weights, what it holds, and its SHA-256.

    The file is that at `path` or, by default, the one in torch's hub cache, into which it is downloaded once. what:
    whose weights they are. name: that of the file in the cache. sha256: the first digits that the digest must have; ''
    admits any file.

    Raises ScoreError, saying where to get the file and where to put it, if it is missing and cannot be downloaded,
    damaged, or a different one.
    """
    file = Path(torch.hub.get_dir(), 'checkpoints', name) if path is None else Path(path).expanduser()
    if not file.is_file():
        if path is not None:
            raise ScoreError(f'{file}: no such file; get the {what} weights from {url} and put them there')
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # This writes to a temporary name, checks the hash, and renames. It leaves nothing if there is an error.
            download(url, file, sha256)
        except (OSError, RuntimeError) as error:
            raise ScoreError(
                f'no {what} weights ({error}): get {url} elsewhere and put it at {file}, or give its path'
            ) from None
    digest = file_digest(file)
    if not digest.startswith(sha256):
        raise ScoreError(
            f'{file}: sha256 begins with {digest[:8]}, not {sha256[:8]}: truncated, or not the published weights; '
            f'replace it by {url}'
        )
    return file, load_torch(file), digest


def fill(network, state, file, what):
    """Loads a state dict into a network on the meta device. Raises ScoreError if it is not `what` it should be."""
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = ' '.join(str(error).split())[:160]
        raise ScoreError(f'{file}: not {what} ({reason})') from None


def load_torch(path):
    """Loads tensors and plain containers on the CPU, nothing else. Raises ScoreError for a missing or damaged file."""
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise ScoreError(f'{path}: no such file') from None
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... depending on the damage
        reason = str(error).split('\n')[0][:120] or type(error).__name__
        raise ScoreError(f'{path}: truncated, or not a file of plain tensors ({reason}); replace it') from None
