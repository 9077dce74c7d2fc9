"""Writes a model for programs without PyTorch: its network as ONNX, and its samplers as tables of numbers, in JSON.

docs/onnx.md says what `sampler.json` holds, with the code that draws by it in NumPy. docs/try/ draws in a browser.
"""

import contextlib
import copy
import json
import logging
import os
import warnings

import torch

from diffusion import Guidance
from process.solvers import SOLVERS
from run import build
from run.checkpoint import CheckpointError
from run.config import replace, sampler_keys, words
from run.errors import UsageError
from run.labels import names

OPSET = 18  # which onnxruntime reads since 1.14, of 2023
STEPS, ETAS = (5, 10, 20, 50, 100), (0.0, 0.5, 1.0)  # of the tables beside that of the flags, with each of `SOLVERS`
LARGEST_FILE = 2**31 - 2**20  # bytes of weights in one file, which protobuf ends at 2 GiB


def check_packages():
    """Raises CheckpointError if a package is missing that torch needs to write ONNX."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        remedy = 'pip install -r requirements-onnx.txt'
        raise CheckpointError(f'--export=onnx needs packages: {remedy} ({error})') from error


def write(folder, config, net, step):
    """Writes network.onnx and sampler.json into a new folder. config, net, step: as `restore` gives them.

    Raises UsageError for --prior=data, since walks by sampler.json start from N(0, I).
    """
    if config.prior != 'standard':
        raise UsageError(f'--prior={config.prior} cannot be exported: walks by sampler.json start from N(0, I)')
    described = describe(config)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, 'sampler.json'), 'w') as file:
        json.dump({'weights': config.weights, 'step': step, **described}, file, allow_nan=False)
    logging.info('converting the network to ONNX, which takes a minute or less')
    _write_network(os.path.join(folder, 'network.onnx'), config, net)


def _write_network(path, config, net):
    """Writes (x, t) -> out or (x, t, y) -> out in float32, for every number of images.

    Weights over `LARGEST_FILE` go to a second file, network.onnx.data. Raises CheckpointError if torch cannot write the
    network.
    """
    net = copy.deepcopy(net).cpu().float().eval()
    inputs = {'x': torch.zeros(2, *build.shape(config)), 't': torch.zeros(2, dtype=torch.int64)}
    if config.num_classes:
        inputs['y'] = torch.zeros(2, dtype=torch.int64)
    batch = torch.export.Dim('batch')
    for converter in ('onnxscript', 'onnx_ir'):  # they log every change of the graph
        logging.getLogger(converter).setLevel(logging.WARNING)
    with warnings.catch_warnings(), _same_precision_in_cudnn():
        warnings.simplefilter('ignore')  # of torch about its own parts
        try:
            torch.onnx.export(
                net,
                tuple(inputs.values()),
                path,
                input_names=list(inputs),
                output_names=['out'],
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                opset_version=OPSET,
                external_data=sum(p.numel() * 4 for p in net.state_dict().values()) > LARGEST_FILE,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().partition('\n')[0]
            raise CheckpointError(f'torch cannot write this network as ONNX: {reason}') from error


@contextlib.contextmanager
def _same_precision_in_cudnn():
    """Undoes `full_fp32` for convolutions: torch.export reads one setting for all of cuDNN, an error if they differ.

    That changes no result, since an export computes nothing.
    """
    conv, rnn = torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before, conv.fp32_precision = conv.fp32_precision, rnn.fp32_precision
    try:
        yield
    finally:
        conv.fp32_precision = before


def describe(config):
    """Returns the content of sampler.json as a dict: what the network takes and gives, and the tables of samplers.

    The first table is that of the config. The others are those of `STEPS`, `SOLVERS` and `ETAS` that can be had.
    """
    sampler = build.sampler(config, None)
    guided = sampler.model.guided if isinstance(sampler.model, Guidance) else None
    from_out, from_x_t = sampler.parameterisation.inverse.tolist()
    grid = [
        replace(config, sample_steps=steps, timesteps=[], order=order, eta=eta, corrector=False)
        for steps in STEPS
        for order in SOLVERS
        for eta in ETAS
        if steps <= config.T
    ]
    tables = {}
    for each in (config, *grid):
        with contextlib.suppress(ValueError):  # of a solver that is not for this eta, or needs more steps
            tables.setdefault((each.sample_steps or each.T, each.order, each.corrector, each.eta), table(each))
    return {
        'opset': OPSET,
        'shape': build.shape(config),
        'T': config.T,
        'mean_type': config.mean_type,
        'from_out': from_out,
        'from_x_t': from_x_t,
        'clip_x0': sampler.clip_denoised,
        'learns_variance': sampler.learns_variance,
        'class_names': names(config),
        'null_label': config.num_classes or None,
        'guidance': config.guidance,
        'guided': None if guided is None else guided.tolist(),
        'tables': [
            {**dict(zip(('steps', 'order', 'corrector', 'eta'), key, strict=True)), **rest}
            for key, rest in tables.items()
        ],
    }


def table(config):
    """Returns {flags: those of --sample, rows: the `Step`s from noise to image} for the sampler of a config.

    A row has the timestep t, and s, the number of noisings after the step.
    """
    route = build.sampler(config, None).route()
    said = [*sampler_keys(config.timesteps), *(['guidance_interval'] if config.num_classes else [])]
    return {
        'flags': ' '.join(words({**vars(config), 'noise': 'philox'}, said)),
        'rows': [{'t': t, 's': s, **step._asdict()} for t, s, step in route],
    }
