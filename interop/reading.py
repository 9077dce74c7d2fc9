"""Weights in, from whatever kind of file or folder, or by the name of published ones."""

import os
from types import SimpleNamespace
from typing import NamedTuple

from diffusion import GaussianDiffusionSampler
from interop import formats, pipeline
from interop.published import DDPM, PUBLISHED, download
from run import build
from run.checkpoint import CheckpointError, blamed, load_weights


class Source(NamedTuple):
    """What was read: flags by name, and the state dicts of the last and of the averaged weights."""

    config: dict
    net: dict
    ema: dict


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
    **DDPM, 'img_size': 32, 'dropout': 0.0, 'var_type': 'fixedlarge', 'clip_denoised': False, 'sample_steps': 0,
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
