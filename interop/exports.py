"""Exports a model for other programs: as a folder for diffusers or for ONNX, or as one safetensors file."""

import json
import os

from safetensors.torch import save_file

from interop import hub, onnx_folder, pipeline
from interop.card import model_card
from run import files
from run.restore import run_folder


def check_export(config):
    """Raises UsageError or CheckpointError if --export or --push cannot work, before anything is made."""
    if config.export == 'onnx':
        onnx_folder.check_packages()
    if config.push:
        hub.check_push(config)


def export(config, net, step):
    """Writes the export that --export names to --out, whole or not at all; returns its path.

    Without --out it is written beside the checkpoint. With --push it also goes to the Hub. config, net, step: as
    `restore` gives them.

    Raises UsageError if the format cannot represent the model, FileExistsError if there is something at --out,
    HubError if the Hub does not take it.
    """
    write, default_name = EXPORTS[config.export]
    out = (config.out or os.path.join(run_folder(config), default_name)).rstrip(os.sep) or os.sep
    if os.path.exists(out) and not (os.path.isdir(out) and not os.listdir(out)):
        raise FileExistsError(f'{out} is there already: choose another --out or remove it')
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    with files.replacing(out) as temporary:
        write(temporary, config, net, step)
        if os.path.isdir(out) and os.path.isfile(temporary):
            raise FileExistsError(f'{out} is a folder: name the file in it')
        if config.push:
            hub.push(temporary, config.push, f'Export the {config.weights} weights of step {step}')
        if os.path.isdir(out):
            os.rmdir(out)
    return out


def _to_diffusers(folder, config, net, step):
    pipeline.write(folder, config, net, model_card(config, net, step))


def _to_safetensors(path, config, net, step):
    """Writes the weights under the names of `UNet`, and every flag as JSON in the metadata."""
    flags = {**vars(config), 'moments': None if config.moments is None else config.moments.tolist()}
    weights = {key: value.cpu().contiguous() for key, value in net.state_dict().items()}
    save_file(weights, path, {'format': 'pt', 'step': str(step), 'config': json.dumps(flags)})


# name -> (function of (path, config, net, step) that writes the export, its name if --out is not given)
EXPORTS = {
    'diffusers': (_to_diffusers, 'diffusers'),
    'safetensors': (_to_safetensors, 'model.safetensors'),
    'onnx': (onnx_folder.write, 'onnx'),
}
