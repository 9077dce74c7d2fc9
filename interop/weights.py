"""Weights in and out: whatever kind of checkpoint, published ones by name; exports for diffusers and as safetensors."""

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from safetensors.torch import save_file

from diffusion import GaussianDiffusionSampler
from interop import formats, pipeline
from run import build, files, progress
from run.checkpoint import CheckpointError, blamed, load_weights
from run.restore import run_folder


class Source(NamedTuple):
    """What was read: flags by name, and the state dicts of the last and of the averaged weights."""

    config: dict
    net: dict
    ema: dict


class Published(NamedTuple):
    place: str  # within ADDRESS
    md5: str
    steps: int  # of training
    config: dict  # flags that the weights do not tell


_DDPM = {'T': 1000, 'schedule': 'linear', 'beta_1': 1e-4, 'beta_T': 0.02, 'mean_type': 'epsilon', 'clip_denoised': True}
_CIFAR10 = {**_DDPM, 'dataset': 'cifar10', 'img_size': 32, 'dropout': 0.1, 'var_type': 'fixedlarge'}
_LSUN = {**_DDPM, 'img_size': 256, 'dropout': 0.0, 'var_type': 'fixedsmall'}
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


def read(path):
    """What the file or folder at `path`, or a name of `PUBLISHED`, holds: a `Source`.

    A file: as `formats.load`, of this program, pytorch-ddpm or the authors' network (pesser/pytorch_diffusion,
    ermongroup/ddim). A folder: a run's, for its ckpt.pt, or a pipeline of diffusers. The flags are those that the
    weights and what lies beside them tell: of the authors' network neither T nor img_size, but for published ones.

    Raises CheckpointError where it is damaged, unsafe or of no such network; FileNotFoundError.
    """
    published = None if os.path.exists(path) else PUBLISHED.get(path)
    if published:
        path = download(path)
    elif not os.path.exists(path):
        raise FileNotFoundError(f'{path}: no such file or folder, nor one of {", ".join(PUBLISHED)}')
    if os.path.exists(os.path.join(path, 'ckpt.pt')):
        path = os.path.join(path, 'ckpt.pt')
    with blamed(path):
        if os.path.isdir(path):
            told, net = pipeline.read(path)
            return Source(told, net, net)
        config, found = formats.load(path)
        if config is None:
            config, names = formats.identify(found[0], path)
            if names is formats.DIFFUSERS:
                raise CheckpointError(f'{path} is of diffusers: give its folder, which has the config.json it needs')
            found = [formats.convert(weights, config, names, path) for weights in found]
        return Source({**config, **(published.config if published else {})}, *found)


# What neither a file tells nor the caller: the flags by default, as --import_ckpt takes them.
UNTOLD = {
    **_DDPM, 'img_size': 32, 'dropout': 0.0, 'var_type': 'fixedlarge', 'clip_denoised': False, 'sample_steps': 0,
    'spacing': 'leading', 'eta': 1.0, 'prior': 'standard', 'head_dim': 0,
}  # fmt: skip


def from_pretrained(name, **options):
    """A `GaussianDiffusionSampler` of averaged weights, its network `sampler.model` in eval mode on the CPU.

    name: whatever `read` takes, such as a name of `PUBLISHED`, a run's folder, a file, a folder of diffusers. options:
    of the sampler, such as steps=50, eta=0.0, in place of those it was trained or published with.

    Raises FileNotFoundError where there is no such thing, CheckpointError as `read` does.
    """
    source = read(name)
    config = SimpleNamespace(**{**UNTOLD, **source.config})
    model = build.network(config)
    fixed = {key: value for key, value in model.named_parameters() if not value.requires_grad}  # which others leave out
    load_weights(model, {**fixed, **source.ema}, name)
    theirs = {key: getattr(config, key) for key in ('mean_type', 'var_type', 'schedule', 'spacing', 'eta')}
    theirs |= {'clip_denoised': config.clip_denoised, 'steps': config.sample_steps or None}
    if config.prior == 'data':
        theirs['data_moments'] = config.moments
    betas = config.beta_1, config.beta_T
    return GaussianDiffusionSampler(model.eval(), *betas, config.T, config.img_size, **{**theirs, **options})


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


def export(config, net, step):
    """Write --export to --out, by default beside the checkpoint, whole or not at all; returns where it is.

    config, net, step: of `restore`.

    Raises UsageError where the format cannot represent the model, FileExistsError where there is something at --out.
    """
    write, name = EXPORTS[config.export]
    out = (config.out or os.path.join(run_folder(config), name)).rstrip(os.sep) or os.sep
    if os.path.exists(out) and not (os.path.isdir(out) and not os.listdir(out)):
        raise FileExistsError(f'{out} is there already: choose another --out or remove it')
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    with files.replacing(out) as temporary:
        write(temporary, config, net, step)
        if os.path.isdir(out):
            os.rmdir(out)
    return out


def _to_diffusers(folder, config, net, step):
    pipeline.write(folder, config, net, model_card(config, net, step))


def _to_safetensors(path, config, net, step):
    """Weights under `UNet`'s names, and every flag, as JSON, in the metadata."""
    said = {**vars(config), 'moments': None if config.moments is None else config.moments.tolist()}
    weights = {key: value.cpu().contiguous() for key, value in net.state_dict().items()}
    save_file(weights, path, {'format': 'pt', 'step': str(step), 'config': json.dumps(said)})


# name -> (function of (path, config, net, step), the name that --out has by default)
EXPORTS = {'diffusers': (_to_diffusers, 'diffusers'), 'safetensors': (_to_safetensors, 'model.safetensors')}

CARD = """\
---
license: {license}
library_name: diffusers
tags: [diffusers, ddpm, {task}]
datasets: [{dataset}]
---

# {title}

A denoising diffusion probabilistic model (Ho et al. 2020, https://arxiv.org/abs/2006.11239) of {dataset}:
{channels}x{size}x{size} images, {parameters:,} parameters, {weights}{step}.

## How to load

```python
{code}
```

From the same noise it draws what `python main.py` draws with the flags in its comments.

## Scores

{scores}

## Trained with

```
{flags}
```
"""


def model_card(config, net, step):
    """The README.md of an exported model: what it is, how to load it, how it scored and how it was trained."""
    folder = run_folder(config)
    weights = {'ema': 'averaged weights', 'net': 'last weights'}[config.weights]
    said = {
        **vars(config),
        'title': os.path.basename(os.path.abspath(folder)),
        'task': 'class-conditional-image-generation' if config.num_classes else 'unconditional-image-generation',
        'parameters': sum(parameter.numel() for parameter in net.parameters()),
        'size': config.img_size,
        'weights': weights,
        'step': f', after {step} training steps' if step else '',
    }
    code = pipeline.drawing_code(vars(config))
    flags = _text(os.path.join(folder, 'flagfile.txt')).strip() if step else 'weights from elsewhere: not known'
    return CARD.format(**{**said, 'code': code, 'flags': flags, 'scores': _scores(os.path.join(folder, 'eval.txt'))})


def _text(path):
    return Path(path).read_text() if os.path.exists(path) else ''


def _scores(path):
    """A table of what --eval wrote, and how each line was measured."""
    records = [json.loads(line) for line in _text(path).splitlines()]
    if not records:
        return 'None were measured.'
    lines = ['| after step | images | scores | sampler | measured with |', '| --- | --- | --- | --- | --- |']
    for record in records:
        scores = [
            f'{key} {value:.4g}' for key, value in record.items() if key.startswith(('FID', 'IS', 'KID')) and value
        ]
        sampler = [f'{key} {record[key]}' for key in ('sample_steps', 'eta', 'var_type', 'clip_denoised', 'guidance')]
        made = [
            f'{key} {record[key]}' for key in ('reference', 'feature_net', 'protocol', 'precision') if key in record
        ]
        lines.append(
            f'| {record["step"]} | {record["n"]} | {", ".join(scores)} | {", ".join(sampler)} | {", ".join(made)} |'
        )
    return '\n'.join(lines)
