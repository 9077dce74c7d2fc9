"""Define the tasks to time. Each returns {candidate: function}; ratios are relative to the first candidate."""

import copy

import numpy as np
import scipy.linalg
import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

import train
from bench.rivals import Diffusers, Reference
from draw.inference import Inference
from run import build, compiling, hardware
from run.config import replace
from score import calculate_frechet_distance
from score.features import assemble
from score.inception import pytorch_input
from score.inception_network import FIDInception

STEPS = 2  # sampling steps per call


def _rivals(config, options):
    rivals = {}
    if options.reference:
        rivals['pytorch-ddpm'] = Reference(options.reference, config, hardware.device(config))
    rivals['diffusers'] = Diffusers(config, hardware.device(config))
    return rivals


def precisions(config):
    """Return the precisions that the device computes in. An emulated one tells nothing and would take an hour."""
    native = hardware.precision(replace(config, precision='auto')) == torch.bfloat16
    return ['fp32', 'bf16'] if native else ['fp32']


def _ours(config, options):
    """Return {name: (precision, options of inductor, or None for no compiling)}."""
    kinds = {f'ours, {precision} eager': (precision, None) for precision in precisions(config)}
    if options.compile:
        best, wanted = precisions(config)[-1], compiling.options(config)
        kinds[f'ours, {best} compiled'] = best, wanted
        if compiling.GRAPHS in wanted:  # for comparison: --compile=on uses them
            kinds[f'ours, {best} without graphs'] = best, wanted | {compiling.GRAPHS: False}
    return kinds


def training(config, options):
    """Take one training step on a batch that is on the device: forward, backward, clipping, Adam and EMA."""
    x_0 = torch.randn(options.batch_size, *build.shape(config), device=hardware.device(config))
    steps = {name: lambda rival=rival: rival.train_step(x_0) for name, rival in _rivals(config, options).items()}
    for name, (precision, wanted) in _ours(config, options).items():
        run = train.Run(replace(config, precision=precision, compile='off', batch_size=options.batch_size))
        if wanted is not None:
            run.compile(**wanted)
        steps[name] = lambda run=run: run.update(x_0)
    return steps


def sampling(config, options):
    """Take one step of ancestral sampling on a batch, noise included."""
    device = hardware.device(config)
    config = replace(config, sample_steps=STEPS)
    x_T = torch.randn(options.batch_size, *build.shape(config), device=device)
    walks = {name: lambda rival=rival: rival.sample(x_T, STEPS) for name, rival in _rivals(config, options).items()}
    net = build.network(config).to(device).eval()
    kinds = _ours(config, options)
    if options.compile:
        kinds['ours, fp32 compiled'] = 'fp32', compiling.options(config)
    for name, (precision, wanted) in kinds.items():
        model = Inference(net, hardware.precision(replace(config, precision=precision)))
        if wanted is not None:
            model.compile(**wanted)
        sampler = build.sampler(config, model).to(device)
        walks[name] = lambda sampler=sampler: sampler(x_T)
    return walks


def ema(config, options):
    """Average the weights after a training step."""
    averages = {name: rival.average for name, rival in _rivals(config, options).items()}
    net = build.network(config).to(hardware.device(config))
    trained = [p for p in net.parameters() if p.requires_grad]
    averaged = [p for p in copy.deepcopy(net).parameters() if p.requires_grad]
    average = get_ema_multi_avg_fn(config.ema_decay)
    averages['ours'] = lambda: average(averaged, trained, None)
    return averages


def optimizer(config, options):
    """Take Adam's step on given gradients, with torch's default and with the fused kernel that we use."""
    net = build.network(config).to(hardware.device(config))
    steps = {}
    for name, how in {'torch default': {}, 'ours, fused': {'fused': True}}.items():
        params = [p for p in copy.deepcopy(net).parameters() if p.requires_grad]
        for p in params:
            p.grad = torch.randn_like(p)
        steps[name] = torch.optim.Adam(params, lr=config.lr, **how).step
    return steps


def frechet(config, options):
    """Compute the distance between two 2048-d Gaussians of full rank, with scipy's sqrtm of the product and our way."""
    rng = np.random.default_rng(0)
    scale = np.exp(rng.normal(size=2048))
    sides = [rng.normal(size=(3000, 2048)) * scale + 0.1 * i for i in range(2)]
    (mu1, sigma1), (mu2, sigma2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in sides)

    def by_sqrtm():
        root = scipy.linalg.sqrtm(sigma1 @ sigma2).real
        return ((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(root)

    def ours():
        return calculate_frechet_distance(mu1, sigma1, mu2, sigma2)

    expected = by_sqrtm()
    assert abs(ours() - expected) / expected < 1e-9
    return {'scipy.linalg.sqrtm': by_sqrtm, 'ours': ours}


def inception(config, options):
    """Compute features of 32x32 images by the FID Inception with random weights, which do not alter its speed."""
    torch.manual_seed(0)
    x = torch.randint(256, (options.batch_size, 3, 32, 32), dtype=torch.uint8)
    device = hardware.device(config)
    about = {'name': 'inception', 'weights_hash': '', 'protocol': 'pytorch', 'prepare': pytorch_input}
    nets = {precision: assemble(FIDInception().eval(), precision, device, **about) for precision in precisions(config)}
    return {name: lambda net=net: net(x) for name, net in nets.items()}


# name -> (task, how often a call processes the batch of images; 0 if the task has no images)
TASKS = {
    'train': (training, 1),
    'sample': (sampling, STEPS),
    'ema': (ema, 0),
    'optimizer': (optimizer, 0),
    'frechet': (frechet, 0),
    'inception': (inception, 1),
}
