"""Reach the Hugging Face Hub by the package huggingface_hub.

It has its own rules for the cache, for interrupted downloads, for tokens (HF_TOKEN, or `hf auth login`), HF_HUB_OFFLINE
and HF_ENDPOINT.
"""

import contextlib
import functools
import glob
import hashlib
import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

from dataset import check_one_set, parquet
from run import distributed, progress
from run.errors import UsageError
from score.files import file_digest

PREFIX = 'hf:'
GRAMMAR = 'OWNER/NAME, OWNER/NAME@REVISION or OWNER/NAME@REVISION/PATH'
CONVERTED = 'refs/convert/parquet'  # the revision in which the Hub keeps most data sets as parquet
ADDRESS = re.compile(rf'([\w.-]+/[\w.-]+)(?:@(refs/pr/\d+|{CONVERTED}|[^/@]+))?(?:/(.+?))?/?')


class HubError(OSError):
    """Something that cannot be had from the Hub, or brought there. The message is one line that names it."""


class Address(NamedTuple):
    """Name a place on the Hub. repo: OWNER/NAME. revision: a branch, tag, commit or None. path: within it, or ''."""

    repo: str
    revision: str | None
    path: str


def parse(text):
    """Return the `Address` of a text as in `GRAMMAR`, with `PREFIX` or without. Raise UsageError if it is none."""
    found = ADDRESS.fullmatch(re.sub('^//(datasets/)?', '', text.removeprefix(PREFIX)))  # as the Hub's own tools write
    repo, revision, path = found.groups('') if found else ('', '', '')
    if {'', '.', '..'} & set(f'{repo}/{path}'.removesuffix('/').split('/')) or path == '/':
        raise UsageError(f'{text} is no address on the Hub: write {GRAMMAR}')
    return Address(repo, revision or None, path)


def resolved(path):
    """Return a path as os.path.realpath does, and an address as it is."""
    return path if path.startswith(PREFIX) else os.path.realpath(path)


def snapshot(text, address, wanted, **options):
    """Return the folder of the cache that has those files of an address that match `wanted`, downloaded if need be.

    options: those of huggingface_hub's function, such as repo_type. Raise HubError if the package is missing or the
    files cannot be had.
    """
    hub = package()
    with explained(text, address):
        return hub.snapshot_download(address.repo, revision=address.revision, allow_patterns=wanted, **options)


@functools.cache
def data_set(text):
    """Return the path of the parquet files at an address of a data set, which are downloaded, and their commit.

    If the address has no revision, they are those of `CONVERTED` or, if there is no such revision, those of main. One
    process of a machine checks each file by `check_once`.

    Raise UsageError for an address that is none; HubError if the files cannot be had or are not what the Hub holds;
    DataError if there are several data sets.
    """
    address = parse(text)
    parquet.package()
    if not hasattr(package('parquet').errors, 'IncompleteSnapshotError'):
        raise HubError(f'{text} needs a newer huggingface_hub: pip install -r requirements-parquet.txt')
    revisions = [address.revision] if address.revision else [CONVERTED, 'main']
    path, silence = glob.escape(address.path), None
    for revision in revisions:
        asked = address._replace(revision=revision)
        check_one_set(text, _listed(asked))
        try:
            # If the Hub did not answer, it is not asked again, since main might come in place of a copy that exists.
            how = {'repo_type': 'dataset', 'local_files_only': bool(silence)}
            folder = snapshot(text, asked, [f'{path}/*.parquet'.lstrip('/'), path], **how)
            break
        except HubError as error:
            if silence or revision == revisions[-1] or not _is_absent(error.__cause__):
                raise silence or error from error.__cause__
            silence = error if isinstance(error.__cause__, FileNotFoundError) else None  # not in the cache
    place = Path(folder, address.path)
    files = [place] if place.is_file() else list(place.rglob('*.parquet'))
    if not files:
        raise HubError(f'{text} holds no parquet files: give another revision or path, {PREFIX}{GRAMMAR}')
    if not distributed.local_rank():
        logging.info('%s: %s of commit %s, %s', text, address.repo, Path(folder).name, revision)
        for file in progress.bar(files, 'checking', unit='file', leave=False):
            check_once(file)
    return str(place), Path(folder).name


def _listed(address):
    """Return the names of the parquet files at an address, below its path, or none if the Hub cannot be asked."""
    try:
        about = package().HfApi().dataset_info(address.repo, revision=address.revision)
    except Exception:  # `snapshot` says what it is, or does without
        return []
    names = [file.rfilename for file in about.siblings or ()]
    above = f'{address.path}/'.lstrip('/')
    return [name.removeprefix(above) for name in names if name.startswith(above) and name.endswith('.parquet')]


def _is_absent(error):
    """Return whether an error of huggingface_hub says that there is no such revision, or none of it in the cache."""
    from huggingface_hub import errors

    absent = errors.RevisionNotFoundError, errors.LocalEntryNotFoundError
    return isinstance(error, absent) and not isinstance(error, errors.IncompleteSnapshotError)


def check_digest(file):
    """Raise HubError if a file of the cache is not what the Hub holds.

    It is a link to a file whose name is its digest: SHA-256 for large files, git's SHA-1 for others. On a system
    without links there is no such name, and huggingface_hub has compared the sizes alone.
    """
    if not file.is_symlink():
        return
    digest = os.path.basename(os.readlink(file))
    if len(digest) == 64:
        found = file_digest(file)
    else:
        content = file.read_bytes()
        found = hashlib.sha1(b'blob %d\0' % len(content) + content, usedforsecurity=False).hexdigest()
    if found != digest:
        blob = file.parent / os.readlink(file)
        raise HubError(f'{file} is not what the Hub holds: its digest is {found}; delete {blob.resolve()}')


def check_once(file):
    """Check a file by `check_digest`, unless DIGEST.checked in the cache says that it was and it has not changed since.

    Without that, each start of a run would read the whole data set.
    """
    status, mark = file.stat(), Path(f'{file.resolve()}.checked')
    state = f'{status.st_size} {status.st_ino} {status.st_ctime_ns}'.encode()
    with contextlib.suppress(OSError):
        if mark.read_bytes() == state:
            return
    check_digest(file)
    with contextlib.suppress(OSError):  # the cache may be someone else's
        mark.write_bytes(state)


def package(use='hub'):
    """Return huggingface_hub. Raise HubError, naming the requirements of a use, if it is not installed."""
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise HubError(f'the Hub needs a package: pip install -r requirements-{use}.txt ({error})') from error
    for name in ('httpx', 'httpx2'):  # which tell of every request
        logging.getLogger(name).setLevel(logging.WARNING)
    return huggingface_hub


@contextlib.contextmanager
def explained(text, address):
    """Raise the errors of huggingface_hub as HubErrors that say what to do."""
    from huggingface_hub import errors

    try:
        yield
    except Exception as error:  # also those of the library that carries its requests, which changed with its versions
        reason = ' '.join(str(error).split()) or type(error).__name__
        status = getattr(getattr(error, 'response', None), 'status_code', None)
        if isinstance(error, errors.GatedRepoError):
            reason = f'{address.repo} is gated: accept its terms on its page, and run hf auth login or set HF_TOKEN'
        elif isinstance(error, errors.RevisionNotFoundError):
            reason = f'{address.repo} has no revision {address.revision}'
        elif isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
            reason = f'{address.repo} is not there or not open to you: see its name, run hf auth login or set HF_TOKEN'
        elif isinstance(error, errors.LocalEntryNotFoundError):
            cause = ' '.join(str(error.__cause__ or error).split())
            reason = f'it is not in the cache, and the Hub is not asked or does not answer ({cause})'
        else:
            reason += ': run the same command again; files that are whole are kept'
        raise HubError(f'{text}: {reason}') from error
