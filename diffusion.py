"""Gaussian diffusion: a loss to train with and walks from noise to images and back, of three tables in process/.

Notation (Ho et al. 2020, https://arxiv.org/abs/2006.11239). `x_0` is an image in [-1, 1], `x_T` is noise. Arrays, the
network and every `t` argument count from 0, as in w86763777/pytorch-ddpm: `alphas_bar[t]` is what t + 1 noisings leave
of the image's variance. `trajectory` and `diffuse` label their states as the paper does, by the number of noisings:
`x_0` has none, `x_T` has T.

A schedule is an array of betas (process/schedules.py). A parameterisation says what the network outputs, by two numbers
for each timestep (process/parameterisations.py). A sampler is a row of numbers for each step (process/solvers.py):
`x_s = cx x_t + c_0 m_0 + c_1 m_1 + ... + std z`, m_0 being the x0_hat of this step and m_1 that of the step before. A
learned variance is two more: `log std^2 = a + b v`, v being the second half of the network's channels.

Tables are computed in float64 on the CPU and stay there; what a step looks up by t is a float32 copy, a buffer that
moves with the module, since some devices have no float64.
"""

from collections import deque

import torch
from torch import nn

from process.losses import LOSSES, T_SAMPLERS
from process.parameterisations import Parameterisation, extract
from process.schedules import known, make_betas, make_timesteps
from process.solvers import VAR_TYPES, learns_variance, posterior_table, solver_steps


def standard_normal(x):
    """z ~ N(0, I), the shape of x, from torch's generator; in one order whatever the memory format of x."""
    return torch.randn_like(x, memory_format=torch.contiguous_format)


def _apply(model, x_t, t, y):
    return model(x_t, t) if y is None else model(x_t, t, y)


class Guidance(nn.Module):
    """w * out(x_t, t, y) + (1 - w) * out(x_t, t, no label): classifier-free guidance (Ho and Salimans 2022, eq. 6).

    Wraps a network and is one: model(x_t, t, y) -> out. Their w is one less: here w = 1 is plain conditional sampling
    and w = 0 unconditional, each in one pass; any other w takes one pass of twice the batch. x_0 and eps are linear in
    the output at a given x_t, so it guides every parameterisation alike. A learned variance, in channels beyond those
    of x_t, is not extrapolated: it is that of the conditional pass. null_label: the y that stands for no label; y =
    None is no label for all.
    """

    def __init__(self, model, w, null_label):
        super().__init__()
        self.model, self.w, self.null_label = model, w, null_label

    def forward(self, x_t, t, y=None):
        if y is None:
            return self.model(x_t, t)
        null = torch.full_like(y, self.null_label)
        if self.w in (0, 1):
            return self.model(x_t, t, y if self.w else null)
        both = self.model(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([y, null]))
        cond, uncond = both.chunk(2)
        guided = self.w * cond + (1 - self.w) * uncond
        return torch.cat([guided[:, : x_t.shape[1]], cond[:, x_t.shape[1] :]], dim=1)


class GaussianDiffusionTrainer(nn.Module):
    """Algorithm 1: the loss of a network at a random timestep, its squared error unless `loss` is another of `LOSSES`.

    model(x_t, t) or, with labels, model(x_t, t, y) -> out, the shape of x_t, or of twice its channels where `var_type`,
    the variance of p in the bound, is learned. antithetic_t: half the batch at t, the other half at T - 1 - t, so that
    no batch has only easy or only hard timesteps; each t is uniform still. t_sampler: a key of `T_SAMPLERS`.

    Raises ValueError as `make_betas` and `Parameterisation` do, and for options that do not go together.
    """

    def __init__(
        self,
        model,
        beta_1,
        beta_T,
        T,
        *,
        schedule='linear',
        mean_type='epsilon',
        antithetic_t=False,
        var_type='fixedlarge',
        loss='mse',
        min_snr_gamma=5.0,
        t_sampler='uniform',
    ):
        super().__init__()
        self.loss = LOSSES[known('loss', loss, LOSSES)]
        if learns_variance(var_type) not in self.loss.learns_variance:
            fitting = [name for name in VAR_TYPES if learns_variance(name) in self.loss.learns_variance]
            raise ValueError(f'loss {loss} does not train var_type {var_type}: it needs {" or ".join(fitting)}')
        if min_snr_gamma <= 0:
            raise ValueError(f'min_snr_gamma must be above 0, not {min_snr_gamma}')
        if antithetic_t and t_sampler != 'uniform':
            raise ValueError(f'antithetic_t pairs uniform timesteps: it needs t_sampler uniform, not {t_sampler}')
        self.model = model
        self.T = T
        self.antithetic_t, self.min_snr_gamma = antithetic_t, min_snr_gamma
        self.t_sampler = T_SAMPLERS[known('t_sampler', t_sampler, T_SAMPLERS)](T)
        self.chain = GaussianDiffusionSampler(
            None, beta_1, beta_T, T, mean_type=mean_type, var_type=var_type, schedule=schedule
        )
        self.parameterisation = self.chain.parameterisation
        alphas_bar = self.chain.alphas_bar
        for name, table in (
            ('sqrt_alphas_bar', alphas_bar.sqrt()),
            ('sqrt_one_minus_alphas_bar', (1 - alphas_bar).sqrt()),
            ('snr_table', alphas_bar / (1 - alphas_bar)),
        ):
            self.register_buffer(name, table.float(), persistent=False)

    def draw(self, shape, device):
        """Draw t, int64 [B], then eps ~ N(0, I), float32 of this shape [B, ...]: pytorch-ddpm's order of draws."""
        B = shape[0]
        t = self.t_sampler.draw((B + 1) // 2 if self.antithetic_t else B, device)
        if self.antithetic_t:
            t = torch.cat([t, self.T - 1 - t])[:B]
        return t, torch.randn(shape, device=device)

    def snr(self, t, x_shape):
        """alphas_bar_t / (1 - alphas_bar_t), the signal-to-noise ratio of x_t, as `extract` shapes it."""
        return extract(self.snr_table, t, x_shape)

    def forward(self, x_0, y=None, t=None, eps=None):
        """|target - out|^2 (paper eq. 14 for epsilon) or another of `LOSSES`, unreduced, the shape of x_0.

        x_0: [B, ...] in [-1, 1]. y: int64 labels [B] or None. t, eps: drawn by `draw` unless given.
        """
        if t is None:
            t, eps = self.draw(x_0.shape, x_0.device)
        x_t = extract(self.sqrt_alphas_bar, t, x_0.shape) * x_0
        x_t = x_t + extract(self.sqrt_one_minus_alphas_bar, t, x_0.shape) * eps
        target = self.parameterisation.target(x_0, eps, t)
        out = _apply(self.model, x_t, t, y).to(target.dtype)
        return self.t_sampler.weigh(self.loss.of(self, x_0, x_t, t, out, target), t)


class GaussianDiffusionSampler(nn.Module):
    """Algorithm 2 and its relatives: ancestral sampling (eta = 1), DDIM (eta = 0) and what lies between.

    model, var_type: as in `GaussianDiffusionTrainer`. steps: None for all T, an int for S of them spaced by `spacing`,
    or the timesteps themselves. eta: in [0, 1]. order: a key of `SOLVERS`, how many x0_hats a step
    is made of. clip_denoised: clip each x0_hat to [-1, 1] as the official code does, but not the output of xprev, which
    is the mean itself.
    data_moments: mean and standard deviation of x_0, a tensor [2, ...], which `start` takes into account.

    Raises ValueError as `make_betas`, `Parameterisation` and `make_timesteps` do, and where eta is outside [0, 1].
    """

    def __init__(
        self,
        model,
        beta_1,
        beta_T,
        T,
        img_size=32,
        mean_type='epsilon',
        var_type='fixedlarge',
        *,
        schedule='linear',
        steps=None,
        spacing='leading',
        eta=1.0,
        order=1,
        clip_denoised=False,
        data_moments=None,
    ):
        super().__init__()
        if not 0 <= eta <= 1:
            raise ValueError(f'eta must be in [0, 1], not {eta}')
        self.model = model
        self.T = T
        self.img_size = img_size
        self.eta, self.var_type, self.order = eta, var_type, order
        self.clip_denoised = clip_denoised and mean_type != 'xprev'
        self.learns_variance = learns_variance(var_type)
        self.betas = make_betas(schedule, beta_1, beta_T, T)
        self.alphas_bar = (1 - self.betas).cumprod(0)
        self.parameterisation = Parameterisation(mean_type, self.alphas_bar)
        self.timesteps = make_timesteps(T, steps, spacing)
        self.states = [0, *(t + 1 for t in self.timesteps)]  # the noisings left at each stop of a trajectory, ascending
        self.table = torch.full((T, 6), torch.nan, dtype=torch.float64)  # row t: c0, cx, std, log sigma^2, a, b
        self.table[self.timesteps] = posterior_table(self.alphas_bar, self.timesteps, eta, var_type)
        self.register_buffer('columns', self.table.T.float().contiguous(), persistent=False)  # [6, T]
        self.register_buffer('data_moments', data_moments, persistent=False)

    def start(self, z):
        """The state a trajectory starts from, of z ~ N(0, I) [B, ...]: z, where alphas_bar is all but 0 (Algorithm 2).

        With data_moments, for chains where it is not, the normal nearest to q(x_T): its mean, and the variance of each
        element, so that E KL(q(x_T) || p(x_T)) is least among those of independent elements.
        """
        if self.data_moments is None:
            return z
        mean, variance = self.start_moments()
        return mean + variance.sqrt() * z

    def start_moments(self):
        """Mean and variance of each element of the state that `start` draws, in the shapes of data_moments or []."""
        alphas_bar = self.alphas_bar[self.timesteps[-1]].float().to(self.columns.device)
        if self.data_moments is None:
            return torch.zeros_like(alphas_bar), torch.ones_like(alphas_bar)
        mean, std = self.data_moments
        return alphas_bar.sqrt() * mean, 1 - alphas_bar + alphas_bar * std**2

    def q_mean_variance(self, x_0, x_t, t):
        """Mean, the shape of x_t, and log variance [B, 1, 1, 1] of q(x_s | x_t, x_0) (paper eq. 6-7; DDIM eq. 7).

        t: int64 [B], timesteps of this sampler; s is the one below. The step to the image has variance 0; its log
        variance is given as that of the step above it, as in pytorch-ddpm.
        """
        c0, cx, log_variance = (extract(self.columns[i], t, x_t.shape) for i in (0, 1, 3))
        return c0 * x_0 + cx * x_t, log_variance

    def predict_xstart_from_eps(self, x_t, t, eps):
        """x_0 = (x_t - sqrt(1 - ab_t) eps) / sqrt(ab_t) (paper eq. 15); the shape of x_t."""
        return Parameterisation('epsilon', self.alphas_bar).to(x_t.device).to_x0(eps, x_t, t)

    def predict_xstart_from_xprev(self, x_t, t, xprev):
        """The x_0 whose posterior mean over the full chain (paper eq. 7) is xprev; the shape of x_t."""
        return Parameterisation('xprev', self.alphas_bar).to(x_t.device).to_x0(xprev, x_t, t)

    def split(self, out, x_t, t):
        """(x0_hat, v) that the network's output at x_t stands for: x0_hat clipped to [-1, 1] with clip_denoised.

        Both have the shape of x_t; v has no channels where no variance is learned. Raises ValueError where the output
        has other channels than var_type needs.
        """
        C = x_t.shape[1]
        if out.shape[1] != C * (1 + self.learns_variance):
            raise ValueError(f'var_type {self.var_type} does not fit a network of {out.shape[1]} channels for {C}')
        x0_hat = self.parameterisation.to_x0(out[:, :C], x_t, t)
        return (x0_hat.clamp(-1, 1) if self.clip_denoised else x0_hat), out[:, C:]

    def p_mean_variance(self, x_t, t, y=None):
        """Mean, the shape of x_t, and log variance of p(x_s | x_t) (paper eq. 1), as `p_of` gives them."""
        return self.p_of(*self.split(_apply(self.model, x_t, t, y), x_t, t), x_t, t)

    def p_of(self, x0_hat, v, x_t, t):
        """Mean, the shape of x_t, and log variance of p(x_s | x_t), from x0_hat and v of `split`.

        The log variance is [B, 1, 1, 1], as of `q_mean_variance`, or the shape of x_t where it is learned.
        """
        mean, _ = self.q_mean_variance(x0_hat, x_t, t)
        a, b = (extract(self.columns[i], t, x_t.shape) for i in (4, 5))
        return mean, a + b * v if self.learns_variance else a

    def _chain(self, start, stop):
        """The timesteps from state `start` down to state `stop`, ascending, and the `Step` of each."""
        start = self.timesteps[-1] + 1 if start is None else start
        if not 0 <= stop < start <= self.T:
            raise ValueError(f'a trajectory needs 0 <= stop < start <= T = {self.T}, not start {start}, stop {stop}')
        chain = sorted({start - 1, *(t for t in self.timesteps if stop <= t < start)})
        known = chain if stop == 0 else [stop - 1, *chain]  # the step to `stop` is not one to the image
        return chain, solver_steps(self.alphas_bar, known, self.eta, self.var_type, self.order)[-len(chain) :]

    @torch.no_grad()
    def trajectory(self, x_T, y=None, start=None, stop=0, noise=standard_normal, project=None):
        """Walk p from x_T to x_0 (Algorithm 2), yielding (t, x_t, x0_hat) after each step.

        t is the number of noisings left in x_t: T - 1 to 0 where every step is taken. x0_hat is the prediction that led
        to x_t. With `start` and `stop` the walk goes from a state x_start (passed as x_T) to x_stop, so that
        trajectory(x_t, start=t) continues one that was left at t. x_T: [B, ...]. y: int64 [B] or None. noise: x -> z.
        project: (t, x_t, x0_hat) -> x_t, called after each step to change the state, as inpainting does. The last x_t
        is not clipped. Raises ValueError unless 0 <= stop < start <= T.
        """
        x_t = x_T
        chain, steps = self._chain(start, stop)
        x0_hats = deque(maxlen=len(steps[0].c))  # the newest first
        for i in reversed(range(len(chain))):
            cx, c, std, slope = steps[i]
            t = torch.full((1,), chain[i], device=x_t.device).expand(len(x_t))
            x0_hat, v = self.split(_apply(self.model, x_t, t, y), x_t, t)
            x0_hats.appendleft(x0_hat)
            x_t = c[0] * x0_hat + cx * x_t
            for c_j, m_j in list(zip(c, x0_hats, strict=False))[1:]:  # the first steps have fewer before them
                x_t = x_t + c_j * m_j
            if std > 0:
                x_t = x_t + (std * torch.exp(0.5 * slope * v) if self.learns_variance else std) * noise(x_t)
            left = chain[i - 1] + 1 if i else stop
            if project:
                x_t = project(left, x_t, x0_hat)
            yield left, x_t, x0_hat

    @torch.no_grad()
    def diffuse(self, x_0, start=0, stop=None, noise=standard_normal):
        """Walk q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I) (paper eq. 2), yielding (t, x_t) a step.

        t is the number of noisings in x_t: from start + 1 to stop, by default 1 to T; x_0 is the state at `start`.
        Raises ValueError unless 0 <= start < stop <= T.
        """
        stop = self.T if stop is None else stop
        if not 0 <= start < stop <= self.T:
            raise ValueError(f'diffusing needs 0 <= start < stop <= T = {self.T}, not start {start}, stop {stop}')
        x_t = x_0
        for t, beta in enumerate(self.betas[start:stop].tolist(), start + 1):
            x_t = (1 - beta) ** 0.5 * x_t + beta**0.5 * noise(x_t)
            yield t, x_t

    def forward(self, x_T, y=None, noise=standard_normal):
        """x_0, clipped to [-1, 1], from x_T ~ N(0, I) [B, C, H, W] (Algorithm 2). noise: x -> z ~ N(0, I)."""
        _, x_0, _ = deque(self.trajectory(x_T, y, noise=noise), maxlen=1).pop()
        return x_0.clamp(-1, 1)
