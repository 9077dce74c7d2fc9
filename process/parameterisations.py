"""Define what a network is trained to output, by two numbers for each timestep, and how x_0 follows from it."""

import torch
from torch import nn

from process.schedules import known
from process.solvers import step_table


def _xprev_target(alphas_bar):
    c0, cx, _ = step_table(alphas_bar, range(len(alphas_bar))).unbind(1)
    return c0 + cx * alphas_bar.sqrt(), cx * (1 - alphas_bar).sqrt()


# name -> function of alphas_bar [T] that returns (a, b): the network's target is a * x_0 + b * eps.
# epsilon: paper eq. 14. xprev: the posterior mean of the full chain, eq. 7. v: Salimans and Ho 2022, section 4.
PARAMETERISATIONS = {
    'epsilon': lambda alphas_bar: (torch.zeros_like(alphas_bar), torch.ones_like(alphas_bar)),
    'xstart': lambda alphas_bar: (torch.ones_like(alphas_bar), torch.zeros_like(alphas_bar)),
    'xprev': _xprev_target,
    'v': lambda alphas_bar: (-(1 - alphas_bar).sqrt(), alphas_bar.sqrt()),
}


class Parameterisation(nn.Module):
    """out = a_t x_0 + b_t eps, and the inverse x_0 = (sigma_t out - b_t x_t) / (a_t sigma_t - b_t alpha_t).

    Here alpha_t = sqrt(alphas_bar_t), sigma_t = sqrt(1 - alphas_bar_t) and x_t = alpha_t x_0 + sigma_t eps.

    eps_scale: divides the predicted eps in the inverse, and 1.005 or so makes up for its errors being carried along a
    trajectory (Ning et al. 2024, "Elucidating the exposure bias").

    Raise ValueError if there is a t without an inverse in float32. If alphas_bar is 0, epsilon has none, and with an
    eps_scale other than 1 nothing has.
    """

    def __init__(self, mean_type, alphas_bar, eps_scale=1.0):
        super().__init__()
        a, b = PARAMETERISATIONS[known('mean_type', mean_type, PARAMETERISATIONS)](alphas_bar)
        alpha, sigma = alphas_bar.sqrt(), (1 - alphas_bar).sqrt()
        scale = a * sigma - b * alpha
        inverse = torch.stack([sigma / scale, -b / scale])
        if eps_scale != 1:  # x_0 = (x_t - sigma eps / eps_scale) / alpha, with the eps of the x_0 so far
            inverse = inverse / eps_scale + torch.stack([torch.zeros_like(alpha), (1 - 1 / eps_scale) / alpha])
        if not inverse.float().isfinite().all():
            scaled, without = ('', '') if eps_scale == 1 else (f'eps_scale {eps_scale} with ', ' without eps_scale')
            raise ValueError(
                f'{scaled}mean_type {mean_type} gives no x_0 if alphas_bar falls to {alphas_bar.min():.3g}: '
                f'choose a schedule that ends in less noise, or mean_type v or xstart{without}'
            )
        self.inverse = inverse  # float64 [2, T]: x_0 = inverse[0, t] out + inverse[1, t] x_t
        for name, table in zip(('a', 'b', 'from_out', 'from_x_t'), (a, b, *inverse), strict=True):
            self.register_buffer(name, table.float(), persistent=False)

    def target(self, x_0, eps, t):
        """Return what the network should output at x_t = alpha_t x_0 + sigma_t eps, in the shape of x_0."""
        return extract(self.a, t, x_0.shape) * x_0 + extract(self.b, t, x_0.shape) * eps

    def to_x0(self, out, x_t, t):
        """Return the x_0 that follows from the network's output at x_t, in the shape of x_t."""
        return extract(self.from_out, t, x_t.shape) * out + extract(self.from_x_t, t, x_t.shape) * x_t


def extract(v, t, x_shape):
    """Return v[t] as [B, 1, 1, 1], to broadcast over x. v: float32 [T]. t: int64 [B]. x_shape: the shape of x."""
    return v.gather(0, t).view(-1, *[1] * (len(x_shape) - 1))
