"""Downloads the authors' trained models by name.

pesser/pytorch_diffusion converted, named and published them. Each file is checked against its published md5.
"""

import logging
import os
from pathlib import Path
from typing import NamedTuple

from run import files
from run.checkpoint import CheckpointError
from score.files import download as download_file
from score.files import file_digest


class Published(NamedTuple):
    """Describes a published file. place: its place within `ADDRESS`. steps: how many training steps its weights had.

    md5: its digest. config: the flags that the weights do not tell.
    """

    place: str
    md5: str
    steps: int
    config: dict


DDPM = {'T': 1000, 'schedule': 'linear', 'beta_1': 1e-4, 'beta_T': 0.02, 'mean_type': 'epsilon', 'clip_denoised': True}
_CIFAR10 = {**DDPM, 'dataset': 'cifar10', 'img_size': 32, 'dropout': 0.1, 'var_type': 'fixedlarge'}
_LSUN = {**DDPM, 'img_size': 256, 'dropout': 0.0, 'var_type': 'fixedsmall'}
_BEDROOM, _CAT, _CHURCH = ({**_LSUN, 'dataset': f'lsun_{name}'} for name in ('bedroom', 'cat', 'church_outdoor'))

ADDRESS = 'https://heibox.uni-heidelberg.de/f/{place}/?dl=1'
PUBLISHED = {
    'cifar10': Published('869980b53bf5416c8a28', '82ed3067fd1002f5cf4c339fb80c4669', 790000, _CIFAR10),
    'ema_cifar10': Published('2e4f01e2d9ee49bab1d5', '1fa350b952534ae442b1d5235cce5cd3', 790000, _CIFAR10),
    'lsun_bedroom': Published('f179d4f21ebc4d43bbfe', 'f70280ac0e08b8e696f42cb8e948ff1c', 2388000, _BEDROOM),
    'ema_lsun_bedroom': Published('b95206528f384185889b', '1921fa46b66a3665e450e42f36c2720f', 2388000, _BEDROOM),
    'lsun_cat': Published('fac870bd988348eab88e', 'bbee0e7c3d7abfb6e2539eaf2fb9987b', 1761000, _CAT),
    'ema_lsun_cat': Published('0701aac3aa69457bbe34', '646f23f4821f2459b8bafc57fd824558', 1761000, _CAT),
    'lsun_church': Published('2711a6f712e34b06b9d8', 'eb619b8a5ab95ef80f94ce8a5488dae3', 4432000, _CHURCH),
    'ema_lsun_church': Published('44ccb50ef3c6436db52e', 'fdc68a23938c2397caba4a260bc2445f', 4432000, _CHURCH),
}


def download(name):
    """Returns the path of a published file, which it downloads if it is not in pesser/pytorch_diffusion's cache.

    The md5 is checked before a download gets its name in the cache, and again each time the cached file is used.

    Raises CheckpointError, saying what to put where, if the file cannot be had or is a different one.
    """
    published = PUBLISHED[name]
    url = ADDRESS.format(place=published.place)
    path = _cached(name, published)
    if path.exists():
        _check_md5(path, path, url, published.md5, 'delete it, to download it again')
        return path
    folder = path.with_name(f'{path.name}.part')
    try:
        logging.info('downloading %s to %s', url, path)
        files.remove(folder)  # of a download that was killed
        folder.mkdir(parents=True)
        download_file(url, folder / path.name)
        _check_md5(folder / path.name, path, url, published.md5, 'if the download broke off, run it again')
        files.replace(folder / path.name, path)
    except OSError as error:
        raise CheckpointError(f'cannot download {path} ({error}): run it again, or put {url} there') from error
    finally:
        files.remove(folder)
    return path


def _cached(name, published):
    """Returns where pesser/pytorch_diffusion keeps the file of this name, so that the two share one cache."""
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'diffusion_models_converted'
    prefix, data = ('ema_', name.removeprefix('ema_')) if name.startswith('ema_') else ('', name)
    return cache / f'{prefix}diffusion_{data}_model' / f'model-{published.steps}.ckpt'


def _check_md5(file, path, url, md5, remedy):
    """Raises CheckpointError unless a file, which is or will be at `path`, has the md5 of what `url` holds."""
    if (found := file_digest(file, 'md5')) != md5:
        raise CheckpointError(f'{path} is not what was published ({url}, md5 {md5}): its md5 is {found}; {remedy}')
