"""Reads weights: from any kind of file or folder, or published ones by name."""

import os
from types import SimpleNamespace
from typing import NamedTuple

from diffusion import GaussianDiffusionSampler
from interop import formats, pipeline
from interop.hub import fetch
from interop.published import DDPM, PUBLISHED, download
from run import build, hub
from run.checkpoint import CheckpointError, exists, load_weights, refusing_other_forms


class Source(NamedTuple):
    """Holds what was read. config: flags by name. net, ema: the state dicts of the last and of the averaged weights."""

    config: dict
    net: dict
    ema: dict


def read(path):
    """Reads the weights in a file or folder, at an address of the Hub, or of a name in `PUBLISHED`; returns a `Source`.

    A file may be one of this program, of pytorch-ddpm, or of the authors' network as pesser/pytorch_diffusion and
    ermongroup/ddim save it. A folder may be that of a run, whose last checkpoint is read, or a pipeline of diffusers.

    The config holds the flags that the weights tell, and those that a config next to them tells. The authors' network
    tells neither T nor img_size; for published weights they are known all the same.

    Raises CheckpointError if the file is damaged, unsafe or of another network; HubError and UsageError as `fetch`;
    FileNotFoundError.
    """
    published = None if os.path.exists(path) else PUBLISHED.get(path)
    if published:
        path = download(path)
    elif path.startswith(hub.PREFIX):
        path = fetch(path)
    elif not os.path.exists(path):
        names = ', '.join(PUBLISHED)
        address = hub.PREFIX + (path if path.count('/') == 1 else 'OWNER/NAME')
        raise FileNotFoundError(f'{path}: no such file or folder, nor one of {names}; from the Hub: {address}')
    run = os.path.join(path, 'ckpt.pt')
    if exists(run):
        path = run
    with refusing_other_forms(path):
        if os.path.isdir(path):
            flags, weights = pipeline.read(path)
            return Source(flags, weights, weights)
        config, stored = formats.read_file(path)
        both = formats.state_dicts(stored, path)
        if config is None:
            config, names = formats.identify(both[0], path)
            if names is formats.DIFFUSERS:
                raise CheckpointError(f'{path} is of diffusers: give its folder, which has the config.json it needs')
            both = [formats.convert(weights, config, names, path) for weights in both]
        return Source({**config, **(published.config if published else {})}, *both)


# The flags that neither the file nor the caller tells: the defaults that --import_ckpt takes.
UNTOLD = {
    **DDPM, 'img_size': 32, 'dropout': 0.0, 'var_type': 'fixedlarge', 'clip_denoised': False, 'sample_steps': 0,
    'spacing': 'auto', 'eta': 1.0, 'prior': 'standard', 'order': 1, 'corrector': False, 'timesteps': [],
    'eps_scale': 1.0, 'head_dim': 0,
}  # fmt: skip


def from_pretrained(name, **options):
    """Makes a `GaussianDiffusionSampler` of averaged weights. Its network, `sampler.model`, is on the CPU in eval mode.

    name: whatever `read` takes: a name in `PUBLISHED`, the folder of a run, a file, a folder of diffusers, an address
    on the Hub. options: arguments of the sampler, such as steps=50 or eta=0.0, which replace those of the training or
    the publication.

    Raises FileNotFoundError if there is no such thing; CheckpointError and HubError as `read` does.
    """
    source = read(name)
    config = SimpleNamespace(**{**UNTOLD, **source.config})
    model = build.network(config)
    # The time table is computed, not trained, and some formats leave it out.
    computed = {key: value for key, value in model.named_parameters() if not value.requires_grad}
    load_weights(model, {**computed, **source.ema}, name)
    if 'order' in options:
        config.spacing = 'auto'  # the stored one was for another order
    same = 'mean_type', 'var_type', 'schedule', 'spacing', 'eta', 'order', 'corrector', 'eps_scale', 'clip_denoised'
    arguments = {key: getattr(config, key) for key in same}
    arguments['steps'] = config.timesteps or config.sample_steps or None
    if config.prior == 'data':
        arguments['data_moments'] = config.moments
    betas = config.beta_1, config.beta_T
    return GaussianDiffusionSampler(model.eval(), *betas, config.T, config.img_size, **{**arguments, **options})
