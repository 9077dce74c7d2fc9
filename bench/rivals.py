"""Run what people would otherwise use on the same work: diffusers, and a checkout of w86763777/pytorch-ddpm.

A rival is an object with `train_step`, `average` and `sample`. Each does what its own training script does, except that
the data are on the device already.
"""

import copy
import importlib.util
import os
import sys

import torch
from torch.nn import functional as F


def _load(folder, name):
    path = os.path.join(folder, f'{name}.py')
    spec = importlib.util.spec_from_file_location(f'reference_{name}', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Reference:
    """pytorch-ddpm: it uses fp32 and default Adam, averages tensor by tensor and reads the loss at each step."""

    def __init__(self, folder, config, device):
        model, diffusion = (_load(folder, name) for name in ('model', 'diffusion'))
        shape = config.ch, config.ch_mult, config.attn, config.num_res_blocks, config.dropout
        self.net = model.UNet(config.T, *shape).to(device)
        self.averaged = copy.deepcopy(self.net)
        self.config = config
        self.optim = torch.optim.Adam(self.net.parameters(), lr=config.lr)
        self.trainer = diffusion.GaussianDiffusionTrainer(self.net, config.beta_1, config.beta_T, config.T).to(device)
        self.diffusion, self.device = diffusion, device

    def average(self):
        source, target = self.net.state_dict(), self.averaged.state_dict()
        decay = self.config.ema_decay
        for key in source:
            target[key].data.copy_(target[key].data * decay + source[key].data * (1 - decay))

    def train_step(self, x_0):
        self.optim.zero_grad()
        loss = self.trainer(x_0).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.config.grad_clip)
        self.optim.step()
        self.average()
        return loss.item()

    @torch.no_grad()
    def sample(self, x_T, steps):
        c = self.config
        arguments = (c.beta_1, c.beta_T, steps, c.img_size, 'epsilon', c.var_type)
        return self.diffusion.GaussianDiffusionSampler(self.averaged.eval(), *arguments).to(self.device)(x_T)


class Diffusers:
    """diffusers: it uses UNet2DModel, EMAModel and DDPMScheduler in fp32."""

    def __init__(self, config, device):
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.training_utils import EMAModel

        levels = range(len(config.ch_mult))
        self.config = config
        self.net = UNet2DModel(
            sample_size=config.img_size,
            block_out_channels=[config.ch * mult for mult in config.ch_mult],
            layers_per_block=config.num_res_blocks,
            down_block_types=['AttnDownBlock2D' if i in config.attn else 'DownBlock2D' for i in levels],
            up_block_types=['AttnUpBlock2D' if i in config.attn else 'UpBlock2D' for i in reversed(levels)],
            dropout=config.dropout,
            norm_eps=1e-5,
            freq_shift=0,
            flip_sin_to_cos=False,
            downsample_padding=1,
            attention_head_dim=None,
        ).to(device)
        self.ema = EMAModel(self.net.parameters(), decay=config.ema_decay)
        self.ema.to(device)
        self.optim = torch.optim.Adam(self.net.parameters(), lr=config.lr)
        self.scheduler = DDPMScheduler(config.T, config.beta_1, config.beta_T, clip_sample=False)

    def average(self):
        self.ema.step(self.net.parameters())

    def train_step(self, x_0):
        noise = torch.randn_like(x_0)
        t = torch.randint(self.config.T, (len(x_0),), device=x_0.device)
        loss = F.mse_loss(self.net(self.scheduler.add_noise(x_0, noise, t), t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.config.grad_clip)
        self.optim.step()
        self.optim.zero_grad()
        self.average()
        return loss

    @torch.no_grad()
    def sample(self, x_T, steps):
        x_t = x_T
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            x_t = self.scheduler.step(self.net(x_t, t).sample, t, x_t).prev_sample
        return x_t
