"""Computes mean and covariance in one pass, and keeps them in npz files."""

import json
import warnings
import zipfile
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from .files import ScoreError, Unscorable, atomic_write
from .source import StaleError, from_text

MOMENTS = 'mu', 'sigma', 'mu_s', 'sigma_s'
MADE_KEYS = ('n', 'feature_net', 'weights_hash', 'protocol', 'precision')
FILE_BYTES = 2**27  # the most that is read of a file of statistics; with 2048 features it is 75 MB
FEATURES_BYTES = 2**29  # the most that is read of a file of features; 50,000 x 2048 are 410 MB


def exact_device(device):
    """Returns the device for float64 sums of what `device` computes: the same or, if it may lack float64, the CPU."""
    device = torch.device(device)
    return device if device.type in ('cpu', 'cuda') else torch.device('cpu')


class Moments:
    """Computes M += sum (x - m)(x - m)^T, merged as by Chan, Golub & LeVeque (1983): mean and covariance of a stream.

    All of it is float64. Every batch is centred on its own mean, so a large offset of the features costs no digits. It
    takes the memory of dim^2 numbers.
    """

    def __init__(self, dim, device='cpu'):
        self.n = torch.zeros((), dtype=torch.float64, device=device)
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)  # sum (x - mean)(x - mean)^T

    def update(self, x):
        """Adds a batch. x: [N, dim], any float type."""
        x = x.to(self.mean.device).to(self.mean.dtype)  # in this order, because the other device may have no such dtype
        mean = x.mean(0)
        shift = mean - self.mean
        total = self.n + len(x)
        # The last row gives the rank-one term of the merge, n N / (n + N) shift shift^T.
        rows = torch.cat([x - mean, (self.n * len(x) / total).sqrt() * shift[None]])  # [N + 1, dim]
        self.scatter.addmm_(rows.T, rows)
        self.mean += shift * (len(x) / total)
        self.n = total

    def reduce(self, all_sum):
        """Replaces the moments of each process by those of all. `all_sum(tensor)` gives the sum over the processes."""
        total = all_sum(self.n.clone())
        mean = all_sum(self.n * self.mean) / total
        shift = self.mean - mean
        self.scatter = all_sum(self.scatter.addr_(shift, shift, alpha=self.n.item()))
        self.n, self.mean = total, mean

    def covariance(self):
        """Computes M / (n - 1), [dim, dim]. Raises Unscorable for fewer than two images."""
        if self.n < 2:
            raise Unscorable(f'a covariance needs at least 2 images, got {int(self.n)}')
        return self.scatter / (self.n - 1)


@dataclass(frozen=True)
class Statistics:
    """Describes one set of features by N(mu, sigma) and a sample, as the metrics need it of a reference.

    mu: [d], sigma: [d, d], float64. made: how the features were computed, a dict with any of MADE_KEYS. sample: float32
    [m, d], some of the features themselves, which KID needs, or None. source: a dict that says what the images were,
    for `check_source`, or None. features: float32 [m, d], all features, up to 50,000, or None. They have a file of
    their own. training, held_out: the same of the training set and of images that no model was trained on. mu_s,
    sigma_s: the moments of the spatial features, which sFID needs, or None.
    """

    mu: np.ndarray
    sigma: np.ndarray
    made: dict
    sample: np.ndarray | None = None
    source: dict | None = None
    features: np.ndarray | None = None
    training: np.ndarray | None = None
    held_out: np.ndarray | None = None
    mu_s: np.ndarray | None = None
    sigma_s: np.ndarray | None = None


def check_gaussian(mu, sigma):
    """Raises ValueError unless mu is [d] and sigma a symmetric [d, d], both finite."""
    if mu.ndim != 1 or tuple(sigma.shape) != (len(mu), len(mu)):
        raise ValueError(f'mu must be [d] and sigma [d, d], got {list(mu.shape)} and {list(sigma.shape)}')
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError('mu or sigma holds NaN or infinity')
    difference = sigma - sigma.T
    if np.abs(difference, out=difference).max() > 1e-6 * max(sigma.max(), -sigma.min()):
        raise ValueError('sigma is not symmetric, so it is no covariance')


def save_statistics(path, statistics):
    """Writes statistics to an npz file, whole or not at all; pytorch-ddpm and pytorch-fid can read mu and sigma.

    The spatial moments have guided-diffusion's names, mu_s and sigma_s.

    Raises ValueError if mu and sigma are no Gaussian.
    """
    check_gaussian(statistics.mu, statistics.sigma)
    if statistics.mu_s is not None:
        check_gaussian(statistics.mu_s, statistics.sigma_s)
    _save(path, statistics, *MOMENTS, 'sample')


def load_statistics(path, net=None):
    """Reads the statistics that `save_statistics` wrote, or any npz with mu and sigma. float32 is cast, with a warning.

    net: the FeatureNet that they will be compared with. What the file says about how it was made must agree with the
    net. If a file says nothing, as pytorch-ddpm's do, only the number of features is checked. guided-diffusion's are
    told by their spatial moments: they are Inception's, under the tf protocol.

    Raises ScoreError if the file is missing, damaged or no Gaussian, StaleError if it was made in another way.
    """
    spatial = 'mu_s', 'sigma_s'
    arrays, made, source = _read(path, ('mu', 'sigma'), ('sample', *spatial), FILE_BYTES)
    sample, pairs = arrays.get('sample'), [('mu', 'sigma')] + [spatial] * any(key in arrays for key in spatial)
    if spatial in pairs:
        made = {'feature_net': 'inception', 'protocol': 'tf'} | made
    try:
        mu, sigma, *spatial = (part for names in pairs for part in _gaussian(path, arrays, *names))
        if sample is not None and (sample.shape[1:] != mu.shape or sample.dtype.kind != 'f'):
            raise ValueError(f'sample must be floats [m, {len(mu)}], got {sample.dtype} {list(sample.shape)}')
    except ValueError as error:
        raise ScoreError(f'{path}: {error}; build it anew') from None
    if net is not None:
        check_made(path, len(mu), made, net)
        if spatial and net.spatial_dim not in (0, len(spatial[0])):
            raise ScoreError(f'{path}: {len(spatial[0])} spatial features, not {net.spatial_dim}; build it anew')
    return Statistics(mu, sigma, made, sample, source, **dict(zip(('mu_s', 'sigma_s'), spatial, strict=False)))


def _gaussian(path, arrays, *names):
    """Returns the mean and the covariance of these names in float64. Raises ValueError if they are no Gaussian."""
    mu, sigma = (arrays.get(name) for name in names)
    if mu is None or sigma is None:
        raise ValueError('it holds only one of {} and {}'.format(*names))
    if {mu.dtype.kind, sigma.dtype.kind} != {'f'}:
        raise ValueError('{} and {} must be floats, not {} and {}'.format(*names, mu.dtype, sigma.dtype))
    if sigma.dtype != np.float64:
        text = f'{path}: {sigma.dtype} statistics limit FID to about 3 decimals; build them anew'
        warnings.warn(text, stacklevel=4)
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    check_gaussian(mu, sigma)
    return mu, sigma


class Features(NamedTuple):
    """Holds the features of a data set, rows float32 [m, d], and says how they were made and of what images."""

    rows: np.ndarray
    made: dict
    source: dict | None


def save_features(path, statistics):
    """Writes the features of a `Statistics` to an npz file of their own, whole or not at all."""
    _save(path, statistics, 'features')


def _save(path, statistics, *names):
    """Writes the arrays of these names that there are, with how and of what they were made."""
    arrays = {name: value for name in names if (value := getattr(statistics, name)) is not None}
    source = {} if statistics.source is None else {'source': json.dumps(statistics.source)}
    with atomic_write(path) as f:
        np.savez(f, **arrays, **statistics.made, **source)


def load_features(path, net):
    """Reads what `save_features` wrote; returns `Features`. net: as in `load_statistics`.

    Raises ScoreError if the file is missing or damaged, StaleError if it was made in another way.
    """
    arrays, made, source = _read(path, ('features',), (), FEATURES_BYTES)
    rows = arrays['features']
    if rows.dtype != np.float32 or rows.ndim != 2:
        found = f'{rows.dtype} {list(rows.shape)}'
        raise ScoreError(f'{path}: features must be float32 [m, d], got {found}; build it anew')
    check_made(path, rows.shape[1], made, net)
    return Features(rows, made, source)


def holds(path, *names):
    """Returns whether a file is an npz with arrays of these names."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {f'{name}.npy' for name in names} <= set(archive.namelist())
    except Exception:  # a broken table of contents makes zipfile raise nearly anything
        return False


def _read(path, needed, optional, limit):
    """Reads the arrays of an npz file; returns ({key: array}, how they were made, source).

    limit: how many bytes the arrays may take. Raises ScoreError if the file is missing or damaged, or if a needed array
    is not in it.
    """
    try:
        with np.load(path, mmap_mode='r', allow_pickle=False) as npz:
            wanted = {*needed, *optional, 'source', *MADE_KEYS}.intersection(npz.files)
            size = sum(npz.zip.getinfo(f'{key}.npy').file_size for key in wanted)
            if size > limit:
                raise ValueError(f'{size} bytes of statistics')
            found, arrays = npz.files, {key: npz[key] for key in wanted}
            if bare := [key for key, value in arrays.items() if not isinstance(value, np.ndarray)]:
                raise ValueError(f'{bare[0]} is no array')
            made = {key: arrays[key].item() for key in MADE_KEYS if key in arrays}
            source = from_text(arrays['source'].item()) if 'source' in arrays else None
    except FileNotFoundError:
        raise ScoreError(f'{path}: no such statistics; build them from the data set first') from None
    except Exception as error:  # a damaged header makes zipfile or numpy raise nearly anything
        raise ScoreError(f'{path}: truncated, or not an npz of plain arrays ({error}); build it anew') from None
    missing = set(needed) - set(arrays)
    if missing:
        raise ScoreError(f'{path}: no {" and no ".join(sorted(missing))} among {sorted(found)}; build it anew')
    return arrays, made, source


def check_made(path, dim, made, net):
    """Raises StaleError if statistics were not `made` as `net` makes features; ScoreError if their number differs."""
    for key, asked in net.made.items():
        found = made.get(key, asked)
        if key == 'precision' and found != asked:
            warnings.warn(f'{path}: made in {found}, compared in {asked}: FID shifts a little', stacklevel=3)
        elif found != asked:
            found, asked = (str(value)[:16] for value in (found, asked))  # of a hash, enough to tell
            raise StaleError(path, f'made with {key} {found}, not {asked}')
    if dim != net.dim:
        raise ScoreError(f'{path}: statistics of {dim} features, but {net.name} has {net.dim}; build it anew')
