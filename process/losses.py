"""Define the loss at a timestep, and how the timesteps of a batch are drawn.

The keys of the two registries are the choices of --loss and --t_sampler.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from process.bound import variational_term
from process.parameterisations import extract


def _mse(trainer, x_0, x_t, t, out, target):
    return F.mse_loss(out[:, : x_0.shape[1]], target, reduction='none')


def _kl(trainer, x_0, x_t, t, out, target):
    return trainer.T * variational_term(trainer.chain, x_0, x_t, t, out)[0]


def _hybrid(trainer, x_0, x_t, t, out, target):
    mean, variance = out.chunk(2, dim=1)
    frozen = torch.cat([mean.detach(), variance], dim=1)
    return _mse(trainer, x_0, x_t, t, out, target) + 0.001 * _kl(trainer, x_0, x_t, t, frozen, target)


def _min_snr(trainer, x_0, x_t, t, out, target):
    x0_hat = trainer.parameterisation.to_x0(out, x_t, t)
    return extract(trainer.snr, t, x_0.shape).clamp(max=trainer.min_snr_gamma) * (x_0 - x0_hat) ** 2


class Loss(NamedTuple):
    of: Callable  # (trainer, x_0, x_t, t, out, target) -> the loss, in the shape of x_0
    learns_variance: tuple  # the values of `learns_variance` that the loss can train with
    of_bound: bool = False  # whether it contains terms of the variational bound, which needs 8-bit images


# name -> the loss of a network's output at x_t.
# mse: paper eq. 14, if epsilon is predicted. kl: T times a term of the bound, paper eq. 5, so that its mean over t is
# the bound without L_T, in bits/dim. hybrid: mse + 0.001 kl, in which kl trains only the variance (Nichol and Dhariwal
# 2021, eq. 16). min_snr: min(SNR, gamma) times the squared error of x_0, for every mean_type (Hang et al. 2023, eq. 8).
LOSSES = {
    'mse': Loss(_mse, (False,)),
    'kl': Loss(_kl, (False, True), of_bound=True),
    'hybrid': Loss(_hybrid, (True,), of_bound=True),
    'min_snr': Loss(_min_snr, (False,)),
}


class Uniform(nn.Module):
    """t ~ U{0..T-1} (Algorithm 1)."""

    def __init__(self, T):
        super().__init__()
        self.T = T

    def draw(self, n, device):
        """Draw t, int64 [n]."""
        return torch.randint(self.T, size=(n,), device=device)

    def weigh(self, loss, t):
        """Return the loss [B, ...] unchanged."""
        return loss

    def noted(self):
        """Return no tensors: uniform drawing learns nothing from the losses."""
        return ()


class LossAware(nn.Module):
    """t ~ p_t, proportional to sqrt(E[L_t^2]), each loss weighted by 1 / (T p_t) (Nichol and Dhariwal 2021, eq. 18).

    The weighted mean estimates the same mean as uniform t does, with less variance as far as E[L_t^2] is known: a
    running mean over about the last `window` losses at t stands for it. Until every t has had `window` losses, p_t is
    uniform; after that, a share `floor` of p_t is uniform. Everything stays on the device. A resumed run needs the
    buffers.
    """

    def __init__(self, T, window=10, floor=1e-3):
        super().__init__()
        self.T, self.window, self.floor = T, window, floor
        self.register_buffer('moments', torch.zeros(T))  # E[L_t^2]
        self.register_buffer('counts', torch.zeros(T))  # how many losses are in each moment
        self.register_buffer('pending', torch.zeros(2, T))  # counts and sums of L_t^2 since the last draw

    def probabilities(self):
        """p_t, float32 [T]."""
        p = torch.where((self.counts < self.window).any(), torch.ones_like(self.moments), self.moments.sqrt())
        return (1 - self.floor) * p / p.sum() + self.floor / self.T

    def draw(self, n, device):
        """Draw t, int64 [n], from the p_t that follows from the losses so far."""
        counts, sums = self.pending
        self.counts += counts
        rate = counts / self.counts.clamp(min=1, max=self.window)
        self.moments.lerp_(sums / counts.clamp(min=1), rate.clamp(max=1))
        self.pending.zero_()
        # torch.multinomial would wait for the device.
        cumulative = self.probabilities().cumsum(0)
        u = torch.rand(n, device=device) * cumulative[-1]
        return torch.searchsorted(cumulative, u, right=True).clamp(max=self.T - 1)

    def weigh(self, loss, t):
        """Return the loss [B, ...] divided by T p_t, and note its squares for the next draw."""
        squares = loss.detach().flatten(1).mean(1) ** 2
        self.pending.index_add_(1, t, torch.stack([torch.ones_like(squares), squares]))
        return loss / (self.T * self.probabilities()[t]).view(-1, *[1] * (loss.ndim - 1))

    def noted(self):
        """Return what was noted since the last draw: sums, which several processes can add up."""
        return (self.pending,)


# name -> function of T that returns a module with draw(n, device) -> t, weigh(loss, t) -> loss and noted() -> tensors,
# which are to be summed over the processes.
T_SAMPLERS = {'uniform': Uniform, 'loss_aware': LossAware}
