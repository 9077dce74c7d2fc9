"""Takes weights from the Hugging Face Hub and publishes exports there.

The package huggingface_hub does it, by its own rules for the cache, for interrupted downloads, for tokens (HF_TOKEN, or
`hf auth login`), HF_HUB_OFFLINE and HF_ENDPOINT.
"""

import contextlib
import glob
import hashlib
import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

from interop import pipeline
from run.checkpoint import CheckpointError
from run.errors import UsageError
from score.files import file_digest

PREFIX = 'hf:'
GRAMMAR = 'OWNER/NAME, OWNER/NAME@REVISION or OWNER/NAME@REVISION/PATH'
ADDRESS = re.compile(r'([\w.-]+/[\w.-]+)(?:@(refs/pr/\d+|[^/@]+))?(?:/(.+?))?/?')
# The weights that `reading.read` takes of a folder, in the order in which it looks for them, and what goes with them.
WEIGHTS = (
    ['ckpt.pt'],
    *([f'unet/{pipeline.WEIGHTS}.{end}', f'{pipeline.WEIGHTS}.{end}'] for end in ('safetensors', 'bin')),
)
BESIDE = ['unet/config.json', 'config.json', 'scheduler/scheduler_config.json', 'scheduler_config.json']


class Address(NamedTuple):
    """Names a place on the Hub. repo: OWNER/NAME. revision: a branch, tag, commit or None. path: within it, or ''."""

    repo: str
    revision: str | None
    path: str


def parse(text):
    """Returns the `Address` of a text as in `GRAMMAR`, with `PREFIX` or without. Raises UsageError if it is none."""
    found = ADDRESS.fullmatch(text.removeprefix(PREFIX).removeprefix('//'))
    repo, revision, path = found.groups('') if found else ('', '', '')
    if {'', '.', '..'} & set(f'{repo}/{path}'.removesuffix('/').split('/')) or path == '/':
        raise UsageError(f'{text} is no address on the Hub: write {GRAMMAR}')
    return Address(repo, revision or None, path)


def fetch(text):
    """Returns the path of the file or folder at an address on the Hub, which it downloads if the cache lacks it.

    Only the weights that `reading.read` takes are downloaded, not the same in other formats. Each file is checked
    against the digest that the Hub gave it, whenever it is used.

    Raises UsageError for an address that is none; CheckpointError if the package is missing, or if the files cannot be
    had or are not what the Hub holds.
    """
    repo, revision, path = address = parse(text)
    hub = _package()
    for weights in WEIGHTS:
        wanted = [path] * bool(path) + [f'{path}/{name}'.lstrip('/') for name in (*weights, *BESIDE)]
        patterns = [glob.escape(name) for name in wanted]
        with _explained(text, address):
            folder = hub.snapshot_download(repo, revision=revision, allow_patterns=patterns)
        place = Path(folder, path)
        if place.is_file() or any((place / name).is_file() for name in weights):
            break
    else:
        raise CheckpointError(f'{text} holds none of {", ".join(sum(WEIGHTS, []))}: name a file in it')
    logging.info('%s: %s of commit %s', text, repo, Path(folder).name)
    for name in wanted:
        _check_digest(Path(folder, name))
    return str(place)


def _check_digest(file):
    """Raises CheckpointError if a file of the cache is not what the Hub holds.

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
        raise CheckpointError(f'{file} is not what the Hub holds: its digest is {found}; delete {blob.resolve()}')


def check_push(config):
    """Raises UsageError or CheckpointError if --push cannot work, before anything is made."""
    address = parse(config.push)
    if config.export != 'diffusers':
        raise UsageError('--push is for --export=diffusers, whose card describes the model')
    if address.path:
        raise UsageError(f'--push={config.push}: the Hub reads a card at the top alone; leave out /{address.path}')
    hub = _package()
    if hub.constants.HF_HUB_OFFLINE:
        raise UsageError('--push with HF_HUB_OFFLINE set: unset it')
    if not hub.get_token():
        raise CheckpointError(f'--push={config.push} needs a token of the Hub: run hf auth login, or set HF_TOKEN')


def push(folder, text, message):
    """Commits the files of a folder to the repository of an address, which it creates if there is none.

    Files there that the folder does not have stay. Raises CheckpointError if the Hub refuses or cannot be reached.
    """
    address = parse(text)
    with _explained(text, address):
        api = _package().HfApi()
        api.create_repo(address.repo, exist_ok=True)
        commit = api.upload_folder(
            repo_id=address.repo, revision=address.revision, folder_path=folder, commit_message=message
        )
    logging.info('%s: %s', text, commit.commit_url)


def _package():
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise CheckpointError(f'the Hub needs a package: pip install -r requirements-hub.txt ({error})') from error
    return huggingface_hub


@contextlib.contextmanager
def _explained(text, address):
    """Raises the errors of huggingface_hub as CheckpointErrors that say what to do."""
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
        raise CheckpointError(f'{text}: {reason}') from error
