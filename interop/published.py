"""The authors' models that are published, by name, and their download."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from run import progress
from run.checkpoint import CheckpointError


class Published(NamedTuple):
    place: str  # within ADDRESS
    md5: str
    steps: int  # of training
    config: dict  # flags that the weights do not tell


DDPM = {'T': 1000, 'schedule': 'linear', 'beta_1': 1e-4, 'beta_T': 0.02, 'mean_type': 'epsilon', 'clip_denoised': True}
_CIFAR10 = {**DDPM, 'dataset': 'cifar10', 'img_size': 32, 'dropout': 0.1, 'var_type': 'fixedlarge'}
_LSUN = {**DDPM, 'img_size': 256, 'dropout': 0.0, 'var_type': 'fixedsmall'}
_BEDROOM, _CAT, _CHURCH = ({**_LSUN, 'dataset': f'lsun_{name}'} for name in ('bedroom', 'cat', 'church_outdoor'))

# The authors' models, as pesser/pytorch_diffusion converted, named and published them.
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
    """The path of a published file: in pesser/pytorch_diffusion's cache, fetched where missing, its md5 checked.

    Raises CheckpointError, saying what to fetch and where to put it, where it cannot be had or is another file.
    """
    published = PUBLISHED[name]
    url = ADDRESS.format(place=published.place)
    prefix, base = ('ema_', name.removeprefix('ema_')) if name.startswith('ema_') else ('', name)
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'diffusion_models_converted'
    path = cache / f'{prefix}diffusion_{base}_model' / f'model-{published.steps}.ckpt'
    part = path.with_name(f'{path.name}.part')
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _fetch(url, part)
        except (OSError, http.client.HTTPException) as error:
            raise CheckpointError(f'no {path} ({error}): run it again to go on, or put {url} there') from error
    whole = path if path.exists() else part
    digest = hashlib.md5()
    with open(whole, 'rb') as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    if (md5 := digest.hexdigest()) != published.md5:
        part.unlink(missing_ok=True)
        raise CheckpointError(f'{whole} is not what was published ({url}, md5 {published.md5}): its md5 is {md5}')
    os.replace(whole, path)
    return path


def _fetch(url, part):
    """Append to `part` what of `url` it lacks. Raises OSError or HTTPException; what came is kept."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={have}-'})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # there is no more
            return
        raise
    with response, open(part, 'ab' if response.status == 206 else 'wb') as file:
        left = int(response.headers.get('Content-Length', 0))
        came = 0  # counted here, for a bar switched off by TQDM_DISABLE counts nothing
        with progress.bar(total=left, unit='B', unit_scale=True, desc=part.stem) as bar:
            while chunk := response.read(1 << 20):
                came += file.write(chunk)
                bar.update(len(chunk))
        if came < left:
            raise OSError(f'the connection ended after {came} of {left} bytes')
