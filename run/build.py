"""Make the network, trainer and sampler of a config, which holds the value of every flag."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from diffusion import GaussianDiffusionSampler, GaussianDiffusionTrainer, Guidance
from model import UNet, sides
from networks.context_unet import ContextUNet
from networks.point_mlp import PointMLP
from process.losses import LOSSES
from process.schedules import make_betas
from process.solvers import learns_variance


class Guided(nn.Module):
    """A network and a weaker one, `guide`, that `sampler` guides it by. It is called like the first."""

    def __init__(self, net, guide):
        super().__init__()
        self.net, self.guide = net, guide

    def forward(self, x, t, y=None):
        return self.net(x, t, y)


class Network(NamedTuple):
    make: Callable  # makes the network of a config
    is_points: bool = False  # takes [B, channels], not images [B, channels, H, W]


def _unet(config):
    shape = (config.ch, config.ch_mult, config.attn, config.num_res_blocks, config.dropout)
    return UNet(config.T, *shape, arch=config.arch, head_dim=config.head_dim, **_image_options(config))


def _context_unet(config):
    return ContextUNet(config.T, config.ch, config.ch_mult, **_image_options(config))


def _image_options(config):
    return {
        'img_channels': config.channels,
        'out_channels': config.channels * (1 + learns_variance(config.var_type)),
        'img_size': config.img_size,
        'num_classes': config.num_classes,
    }


def _point_mlp(config):
    if learns_variance(config.var_type):
        raise ValueError(f'--var_type={config.var_type} is only for images: --net=point_mlp predicts no variance')
    return PointMLP(config.T, config.ch, dim=config.channels, num_classes=config.num_classes)


NETWORKS = {'unet': Network(_unet), 'context_unet': Network(_context_unet), 'point_mlp': Network(_point_mlp, True)}


def network(config):
    """Return the network of a config. Raises ValueError as the class of the network does."""
    return NETWORKS[config.net].make(config)


def is_points(config):
    """Return whether a config is for points instead of images."""
    return NETWORKS[config.net].is_points


def shape(config):
    """Return the shape of one image, (channels, H, W), or of one point, (channels,)."""
    return (config.channels,) if is_points(config) else (config.channels, *sides(config.img_size))


def trainer(config, net):
    """Return Algorithm 1 around `net`. Raises ValueError as `GaussianDiffusionTrainer`, and for a bound on points."""
    if is_points(config) and LOSSES[config.loss].of_bound:
        raise ValueError(f'--loss={config.loss} is of 8-bit images: --net={config.net} is of points')
    return GaussianDiffusionTrainer(
        net,
        config.beta_1,
        config.beta_T,
        config.T,
        schedule=config.schedule,
        mean_type=config.mean_type,
        antithetic_t=config.antithetic_t,
        var_type=config.var_type,
        loss=config.loss,
        min_snr_gamma=config.min_snr_gamma,
        t_sampler=config.t_sampler,
    )


def sampler(config, net):
    """Return Algorithm 2 around `net`, guided by --guidance. net may be None if nothing is predicted.

    With --guide_by it has an attribute `guide`, the weaker network, as `Guided` and `Inference` of one do.

    Raises ValueError as `GaussianDiffusionSampler`, and if --guidance_interval is none or has no timestep.
    """
    if config.num_classes or config.guide_by:
        guide = net.guide if config.guide_by and net else None
        net = Guidance(net, config.guidance, config.num_classes, _guided_timesteps(config), guide)
    return GaussianDiffusionSampler(
        net,
        config.beta_1,
        config.beta_T,
        config.T,
        config.img_size,
        config.mean_type,
        config.var_type,
        schedule=config.schedule,
        steps=config.timesteps or config.sample_steps or None,
        spacing=config.spacing,
        eta=config.eta,
        order=config.order,
        corrector=config.corrector,
        eps_scale=config.eps_scale,
        clip_denoised=config.clip_denoised,
        data_moments=config.moments if config.prior == 'data' else None,
    )


def _guided_timesteps(config):
    """Return whether each timestep lies in --guidance_interval, bool [T], or None if all do.

    sigma_t = sqrt((1 - ab_t) / ab_t) is the standard deviation of the noise in x_t / sqrt(ab_t), which is the sigma of
    Kynkaanniemi et al. (2024, https://arxiv.org/abs/2404.07724): an interval of theirs means the same here.
    """
    if not config.guidance_interval:
        return None
    try:
        low, high = map(float, config.guidance_interval.split(','))
    except ValueError:
        low = high = 0
    if not 0 <= low < high:
        raise ValueError(f'--guidance_interval={config.guidance_interval} must be LOW,HIGH with 0 <= LOW < HIGH')
    alphas_bar = (1 - make_betas(config.schedule, config.beta_1, config.beta_T, config.T)).cumprod(0)
    sigma = ((1 - alphas_bar) / alphas_bar).sqrt()
    guided = (low < sigma) & (sigma <= high)
    if not guided.any():
        ends = f'{sigma[0]:.3g} to {sigma[-1]:.3g}'
        raise ValueError(f'--guidance_interval={config.guidance_interval} has no timestep: sigma goes from {ends}')
    return guided
