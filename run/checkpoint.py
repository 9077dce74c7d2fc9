"""Write checkpoints atomically, verify them when read, and keep the one before as `ckpt.prev.pt`."""

import contextlib
import logging
import os
import pickle
import re
import zipfile

import torch
from filelock import FileLock, Timeout

from run import files
from run.errors import OutOfMemory, ran_out


class CheckpointError(Exception):
    """A checkpoint or its folder cannot be read or written. The message is one line with the remedy."""


def previous(path):
    """Return where `save` keeps the checkpoint before the one at `path`: ckpt.pt -> ckpt.prev.pt."""
    return '.prev'.join(os.path.splitext(path))


def numbered(path, step):
    """Return where the checkpoint of a step is kept for good: ckpt.pt -> ckpt-5000.pt."""
    return f'-{step}'.join(os.path.splitext(path))


def best(path):
    """Return where the checkpoint with the best score is kept: ckpt.pt -> ckpt.best.pt."""
    return '.best'.join(os.path.splitext(path))


def exists(path):
    """Return whether `load` finds a checkpoint at `path` or `previous(path)`."""
    return os.path.exists(path) or os.path.exists(previous(path))


def save(path, state, *kept):
    """Write `state` to `path` so that a crash at any moment leaves a whole checkpoint at `path` or at `previous(path)`.

    kept: more paths for it, linked to the same bytes if the file system has links.

    Raises CheckpointError if the disk is full or the folder cannot be written; older checkpoints are left as they were.
    """

    def rotate(temporary):
        for other in kept:
            files.link(temporary, other)
        if os.path.exists(path):
            files.replace(path, previous(path))

    try:
        with files.replacing(path, durable=True, first=rotate) as temporary, open(temporary, 'wb') as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch's writer turns some I/O errors into RuntimeError
        reason = _root_cause(error)
        raise CheckpointError(f'cannot write {path}: {reason}; the checkpoint before it is kept') from error


def _root_cause(error):
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return getattr(error, 'strerror', None) or _first_line(error)


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# The functions that rebuild NumPy's values from a pickle -> how to describe those values.
NUMPY = {'scalar': ', a NumPy number such as np.float64', '_reconstruct': ', a NumPy array'}


def _unreadable(path, error):
    """Return the CheckpointError for an error of torch.load: it names the refused type, without torch's advice."""
    foreign = re.search(r'GLOBAL (\S+)', str(error))
    if not isinstance(error, pickle.UnpicklingError) or not foreign:
        return CheckpointError(f'{path} is damaged or no checkpoint ({_first_line(error)})')
    name = foreign[1]
    what = NUMPY.get(name.rpartition('.')[2], '') if name.startswith('numpy.') else ''
    return CheckpointError(
        f'{path} holds {name}{what}: other types than tensors and plain values may run code and are not read; '
        'if you trust it, load it elsewhere and save its state dicts alone'
    )


def load(path, repair=False):
    """Return the state at `path`. If that is missing or damaged, warn and return the one at `previous(path)`.

    Checks every byte against the zip's CRCs, and unpickles only tensors and plain values. With `repair`, a damaged
    file is renamed to ckpt.bad.pt, so that the next `save` does not rotate it over the good one.

    Raises CheckpointError if neither can be read; FileNotFoundError if neither exists.
    """
    fallback = previous(path)
    if not exists(path):
        raise FileNotFoundError(f'no checkpoint at {path}')
    try:
        return _load_verified(path)
    except CheckpointError as error:
        if not os.path.exists(fallback):
            raise
        try:
            state = _load_verified(fallback)
        except CheckpointError as second:
            raise CheckpointError(f'{error}; {second}') from second
        logging.warning('%s: using %s instead', error, fallback)
        if repair and os.path.exists(path):
            files.replace(path, '.bad'.join(os.path.splitext(path)))
        return state


def _load_verified(path):
    state = read(path)
    if not isinstance(state, dict):
        raise CheckpointError(f'{path} is no checkpoint: it holds a {type(state).__name__}')
    return state


def read(path):
    """Return what torch.save wrote to `path`, only tensors and plain values. If it is a zip, check every byte.

    Raises CheckpointError if the file is missing, damaged or holds anything else. OSError and OutOfMemory, if it cannot
    be opened or is too large, say nothing of damage.
    """
    try:
        with open(path, 'rb') as file:
            zipped = file.read(2) != b'\x80\x02'  # a bare pickle starts so: torch before 1.6
    except FileNotFoundError as error:
        raise CheckpointError(f'{path} is missing') from error
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > os.path.getsize(path):
                    raise CheckpointError(f'{path} is no checkpoint: it would unpack to more bytes than it has')
                damaged = archive.testzip()
            if damaged:
                raise CheckpointError(f'{path} is damaged: the CRC of {damaged} does not match')
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        # A damaged header can make zipfile, torch or the unpickler raise nearly anything.
        if isinstance(error, CheckpointError):
            raise
        if zipped and ran_out(error):
            raise OutOfMemory(f'out of memory while reading {path}: free as much as the file is large') from error
        raise _unreadable(path, error) from error


@contextlib.contextmanager
def refusing_other_forms(path, *errors):
    """Raise CheckpointError if using the state at `path` fails because it has another form than ours.

    errors: exceptions that mean this, besides those for a missing key or a value of another type.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, *errors) as error:
        raise CheckpointError(
            f'{path} is no checkpoint of this program or pytorch-ddpm ({type(error).__name__}: {_first_line(error)})'
        ) from error


def unwrapped(weights):
    """Return a state dict without the prefix that DistributedDataParallel or DataParallel gives its names."""
    return {key.removeprefix('module.'): value for key, value in weights.items()}


def load_weights(module, weights, path):
    """Load a state dict into `module`, strictly. Raises as `check_weights`; `path` is the file named in the error."""
    weights = unwrapped(weights)
    check_weights(module.state_dict(), weights, path)
    module.load_state_dict(weights)


def check_weights(wanted, found, path):
    """Raise CheckpointError, naming keys, unless weights are finite and have the keys and shapes they should.

    wanted, found: dicts of tensors.
    """
    for key, value in found.items():
        if value.is_floating_point() and not value.float().isfinite().all():
            raise CheckpointError(f'{path}: {key} holds NaN or infinity: it draws nothing')
    wanted, found = ({key: tuple(value.shape) for key, value in weights.items()} for weights in (wanted, found))
    complaints = [f'{key} {wanted[key]} is missing' for key in wanted.keys() - found.keys()]
    complaints += [f'{key} {found[key]} is not of this network' for key in found.keys() - wanted.keys()]
    complaints += [
        f'{key} is {found[key]}, not {wanted[key]}' for key in wanted.keys() & found.keys() if wanted[key] != found[key]
    ]
    if complaints:
        more = f' and {len(complaints) - 3} more' if len(complaints) > 3 else ''
        raise CheckpointError(f'{path} is of another architecture: {"; ".join(sorted(complaints)[:3])}{more}')


@contextlib.contextmanager
def exclusive(logdir):
    """Lock `logdir` for one training process; the lock ends with the process, however it dies.

    Warns and goes on if the file system has no locks. Raises CheckpointError if another live process holds the lock,
    or if the folder cannot be made or written.
    """
    lock = FileLock(os.path.join(logdir, '.lock'), timeout=0, fallback_to_soft=False)
    holder = os.path.join(logdir, '.pid')  # not the lock file, which others cannot read on Windows
    try:
        os.makedirs(logdir, exist_ok=True)
        _acquire(lock, logdir)
        with open(holder, 'w') as file:
            file.write(f'{os.getpid()}\n')
    except Timeout as error:
        who = 'another process'
        with contextlib.suppress(OSError), open(holder) as file:
            who = f'process {file.read().strip()}'
        raise CheckpointError(f'{who} is training in {logdir}: wait for it or choose another --logdir') from error
    except OSError as error:
        raise CheckpointError(f'cannot write {logdir}: {error.strerror}; choose another --logdir') from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(holder)
        lock.release()


def _acquire(lock, logdir):
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in files.UNSUPPORTED:
            raise
        logging.warning('%s has no locks (%s): see to it that one training alone uses it', logdir, error.strerror)
