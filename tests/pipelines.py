"""Small networks of ours and of diffusers, and noise that both draw from."""

from types import SimpleNamespace

import torch
from diffusers import UNet2DModel

from interop import formats

DDPM = {
    'net': 'unet', 'T': 40, 'schedule': 'linear', 'beta_1': 1e-3, 'beta_T': 0.2, 'mean_type': 'epsilon',
    'var_type': 'fixedlarge', 'clip_denoised': False, 'spacing': 'leading', 'prior': 'standard', 'dropout': 0.1,
    'img_size': 8, 'eta': 1.0, 'sample_steps': 0, 'head_dim': 0, 'order': 1, 'corrector': False, 'timesteps': [],
    'eps_scale': 1.0,
}  # fmt: skip


def described(arch='pytorch_ddpm', ch_mult=(1, 2), attn=(1,), num_res_blocks=1, channels=3, num_classes=0, **flags):
    """Return the config of a small network, and such a network with random weights, in eval mode."""
    told = {**DDPM, 'arch': arch, 'ch': 32, 'ch_mult': list(ch_mult), 'attn': list(attn), **flags}
    told |= {'num_res_blocks': num_res_blocks, 'channels': channels, 'num_classes': num_classes}
    torch.manual_seed(0)
    net = formats.network(told).eval()
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    return SimpleNamespace(**told), net


def share_noise(monkeypatch, randn=torch.randn):
    """Give torch.randn a sequence of its own, which the initial weights of networks do not use up."""
    generator = torch.Generator().manual_seed(1)
    monkeypatch.setattr(torch, 'randn', lambda *shape, **_: randn(*shape, generator=generator))


def small_unet():
    """Make a network of diffusers with its default of 8 channels per head."""
    torch.manual_seed(0)
    blocks = {'down_block_types': ('AttnDownBlock2D',), 'up_block_types': ('AttnUpBlock2D',)}
    return UNet2DModel(4, 1, 1, **blocks, block_out_channels=(32,), layers_per_block=1).eval()
