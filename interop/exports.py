"""Exports of a model for other programs: a folder for diffusers, or one safetensors file."""

import json
import os

from safetensors.torch import save_file

import sample
from interop import pipeline
from interop.card import model_card


def export(config, net, step):
    """Write --export to --out, by default beside the checkpoint, whole or not at all; returns where it is.

    config, net, step: of `sample.restore`.

    Raises UsageError where the format cannot represent the model, FileExistsError where there is something at --out.
    """
    write, name = EXPORTS[config.export]
    out = (config.out or os.path.join(sample.folder(config), name)).rstrip(os.sep) or os.sep
    if os.path.exists(out) and not (os.path.isdir(out) and not os.listdir(out)):
        raise FileExistsError(f'{out} is there already: choose another --out or remove it')
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    with sample.replacing(out) as temporary:
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
