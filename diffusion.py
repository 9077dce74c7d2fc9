"""Compute the training loss of a Gaussian diffusion, and walk from noise to images and back.

Notation (Ho et al. 2020, https://arxiv.org/abs/2006.11239). `x_0` is an image in [-1, 1], `x_T` is noise. Arrays, the
network and every `t` argument count from 0, as in w86763777/pytorch-ddpm: `alphas_bar[t]` is the share of the image's
variance that t + 1 noisings leave. `trajectory` and `diffuse` label their states as the paper does, by the number of
noisings: `x_0` has none, `x_T` has T. A step of a sampler goes from t to s, the timestep below t in its chain.

Three tables hold all numbers. A schedule is an array of betas (process/schedules.py). A parameterisation says what the
network outputs, by two numbers for each timestep (process/parameterisations.py). A sampler is a row of numbers for each
step (process/solvers.py): `x_s = cx x_t + c_0 m_0 + c_1 m_1 + ... + std z`. m_0 is the x0_hat of this step, and m_1 the
x0_hat of the step before. A learned variance needs two numbers more: `log std^2 = a + b v`, where v is the second half
of the network's channels.

Tables are computed in float64 on the CPU and stay there. A step has its row from them. What is looked up by t comes
from float32 copies, which are buffers and move with the module, because some devices have no float64.
"""

from collections import deque

import torch
from torch import nn

from process.losses import LOSSES, T_SAMPLERS
from process.parameterisations import Parameterisation, extract
from process.schedules import known, make_betas, make_timesteps, spacing_for
from process.solvers import VAR_TYPES, Taken, encoding_steps, learns_variance, posterior_table, solver_steps


def standard_normal(x):
    """Draw z ~ N(0, I) in the shape of x from torch's generator; the memory format of x does not alter the values."""
    return torch.randn_like(x, memory_format=torch.contiguous_format)


def clip_image(x_0):
    """Clip the end of a walk to [-1, 1], the range of an image."""
    return x_0.clamp(-1, 1)


def _apply(model, x_t, t, y):
    return model(x_t, t) if y is None else model(x_t, t, y)


class Guidance(nn.Module):
    """w * out(x_t, t, y) + (1 - w) * weaker(x_t, t, y), in which `weaker` knows no label or is a weaker network.

    It wraps a network and is called like one: model(x_t, t, y) -> out. At a given x_t both x_0 and eps are affine in
    the output, and the weights add up to 1, so guidance acts alike on every parameterisation. w = 1 is the network
    alone, w = 0 the weaker one alone. At any other w a learned variance, in the channels beyond those of x_t, is not
    extrapolated but taken from the network.

    null_label: the y that means no label. The weaker output is that of the network for it, from one pass of twice the
    batch (classifier-free guidance: Ho and Salimans 2022, eq. 6, whose w is one less); y = None, no label for the whole
    batch, leaves nothing to guide. guide: another network of the same parameterisation, whose output is the weaker one
    instead (autoguidance: Karras et al. 2024, eq. 3). guided: bool [T], the timesteps at which to guide (Kynkaanniemi
    et al. 2024, eq. 5), or None for all; at the others w is 1.
    """

    def __init__(self, model, w, null_label=None, guided=None, guide=None):
        super().__init__()
        self.model, self.w, self.null_label, self.guide = model, w, null_label, guide
        self.register_buffer('guided', guided, persistent=False)

    def forward(self, x_t, t, y=None):
        inside = None if self.guided is None else self.guided[t]  # [B]
        by_label = self.guide is None
        if (by_label and y is None) or self.w == 1 or (inside is not None and not inside.any()):
            return _apply(self.model, x_t, t, y)
        null = torch.full_like(y, self.null_label) if by_label else None
        if self.w == 0 and (inside is None or inside.all()):
            return self.model(x_t, t, null) if by_label else _apply(self.guide, x_t, t, y)
        if by_label:
            out, weaker = self.model(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([y, null])).chunk(2)
        else:
            out, weaker = _apply(self.model, x_t, t, y), _apply(self.guide, x_t, t, y)
        guided = self.w * out + (1 - self.w) * weaker
        if self.w:
            guided = torch.cat([guided[:, : x_t.shape[1]], out[:, x_t.shape[1] :]], dim=1)
        if inside is None:
            return guided
        return torch.where(inside.view(-1, *[1] * (x_t.ndim - 1)), guided, out)


class GaussianDiffusionTrainer(nn.Module):
    """Algorithm 1: the loss of a network at random timesteps. loss: a key of `LOSSES`, by default the squared error.

    model: called as model(x_t, t) or, with labels, model(x_t, t, y) -> out, in the shape of x_t, or with twice its
    channels if `var_type`, the variance of p in the bound, is learned. antithetic_t: put half the batch at t and the
    other half at T - 1 - t, so that no batch has only easy or only hard timesteps; each t is still uniform. t_sampler:
    a key of `T_SAMPLERS`.

    Raise ValueError as `make_betas` and `Parameterisation` do, and if options do not go together.
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
            ('snr', alphas_bar / (1 - alphas_bar)),
        ):
            self.register_buffer(name, table.float(), persistent=False)

    def draw(self, shape, device, dtype=None):
        """Draw t, int64 [B], then eps ~ N(0, I) of this shape [B, ...] and dtype, in the same order as pytorch-ddpm."""
        B = shape[0]
        t = self.t_sampler.draw((B + 1) // 2 if self.antithetic_t else B, device)
        if self.antithetic_t:
            t = torch.cat([t, self.T - 1 - t])[:B]
        return t, torch.randn(shape, device=device, dtype=dtype)

    def forward(self, x_0, y=None, t=None, eps=None):
        """|target - out|^2 (paper eq. 14 for epsilon) or another of `LOSSES`, unreduced, in the shape of x_0.

        x_0: [B, ...] in [-1, 1]. y: int64 labels [B] or None. t, eps: by default drawn by `draw`. Raise
        ValueError if one of the two is missing.
        """
        if (t is None) != (eps is None):
            raise ValueError('t and eps go together: give both or neither')
        if t is None:
            t, eps = self.draw(x_0.shape, x_0.device, x_0.dtype)
        x_t = extract(self.sqrt_alphas_bar, t, x_0.shape) * x_0
        x_t = x_t + extract(self.sqrt_one_minus_alphas_bar, t, x_0.shape) * eps
        target = self.parameterisation.target(x_0, eps, t)
        out = _apply(self.model, x_t, t, y).to(target.dtype)
        return self.t_sampler.weigh(self.loss.of(self, x_0, x_t, t, out, target), t)


class GaussianDiffusionSampler(nn.Module):
    """Algorithm 2 and its relatives: a sampler that is ancestral (eta = 1), DDIM (eta = 0) or anything between.

    model, var_type: as in `GaussianDiffusionTrainer`. steps: None for all T, an int S for S timesteps placed by
    `spacing` (see `spacing_for`), or the timesteps themselves. eta: in [0, 1]. order: a key of `SOLVERS`, the number of
    x0_hats that a step is made of; corrector: whether each x0_hat also corrects the step that led to it. eps_scale: as
    in `Parameterisation`. clip_denoised: clip each x0_hat to [-1, 1] as the official code does; it has no effect with
    xprev, where the output is the mean of a step of the full chain. data_moments: the mean and standard deviation of
    x_0, a tensor [2, ...], which `start` uses.

    Raise ValueError as `make_betas`, `Parameterisation`, `make_timesteps` and `solver_steps` do, if eta is outside
    [0, 1], and if there are fewer steps than a step of this order is made of.
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
        spacing='auto',
        eta=1.0,
        order=1,
        corrector=False,
        eps_scale=1.0,
        clip_denoised=False,
        data_moments=None,
    ):
        super().__init__()
        if not 0 <= eta <= 1:
            raise ValueError(f'eta must be in [0, 1], not {eta}')
        if not eps_scale > 0:
            raise ValueError(f'eps_scale must be above 0, not {eps_scale}')
        self.model = model
        self.T = T
        self.img_size = img_size
        self.eta, self.var_type, self.order, self.corrector = eta, var_type, order, corrector
        self.clip_denoised = clip_denoised and mean_type != 'xprev'
        self.learns_variance = learns_variance(var_type)
        self.betas = make_betas(schedule, beta_1, beta_T, T)
        self.alphas_bar = (1 - self.betas).cumprod(0)
        self.parameterisation = Parameterisation(mean_type, self.alphas_bar, eps_scale)
        self.timesteps = make_timesteps(self.alphas_bar, steps, spacing_for(order, spacing))
        columns = len(self._steps(self.timesteps[:1])[0].c) - corrector
        if columns > len(self.timesteps):
            raise ValueError(f'order {order} needs {columns} sampling steps or more, not {len(self.timesteps)}')
        self.states = [0, *(t + 1 for t in self.timesteps)]  # the noisings left at each stop of a trajectory, ascending
        self.table = torch.full((T, 6), torch.nan, dtype=torch.float64)  # row t: c0, cx, std, log sigma^2, a, b
        self.table[self.timesteps] = posterior_table(self.alphas_bar, self.timesteps, eta, var_type)
        self.register_buffer('columns', self.table.T.float().contiguous(), persistent=False)  # [6, T]
        self.register_buffer('data_moments', data_moments, persistent=False)

    def start(self, z):
        """Return the state that a trajectory starts from, made of z ~ N(0, I) [B, ...].

        Without data_moments it is z (Algorithm 2), which is right if the last alphas_bar is close to 0. If it is not,
        pass data_moments: the state then has the mean of q(x_T) and the variance of each of its elements. Among normals
        with independent elements, this one has the least E KL(q(x_T | x_0) || p(x_T)), the mean of L_T.
        """
        if self.data_moments is None:
            return z
        mean, variance = self.start_moments()
        return mean + variance.sqrt() * z

    def start_moments(self):
        """Return the mean and variance of each element of what `start` makes, in the shapes of data_moments or []."""
        if self.data_moments is None:
            return self.columns.new_tensor([0.0, 1.0]).unbind()
        alphas_bar, (mean, std) = self.alphas_bar[self.timesteps[-1]].item(), self.data_moments
        return alphas_bar**0.5 * mean, 1 - alphas_bar + alphas_bar * std**2

    def q_mean_variance(self, x_0, x_t, t):
        """Return mean, in the shape of x_t, and log variance [B, 1, 1, 1] of q(x_s | x_t, x_0) (paper eq. 6-7).

        DDIM eq. 7 gives both below eta = 1. t: int64 [B], timesteps of this sampler; s is the timestep below t. The
        step to the image has variance 0; its log variance is copied from the step above, as in pytorch-ddpm, and is
        log(1 - ab_t) if there is none.
        """
        c0, cx, log_variance = (extract(self.columns[i], t, x_t.shape) for i in (0, 1, 3))
        return c0 * x_0 + cx * x_t, log_variance

    def predict_xstart_from_eps(self, x_t, t, eps):
        """x_0 = (x_t - sqrt(1 - ab_t) eps) / sqrt(ab_t) (paper eq. 15), in the shape of x_t."""
        return Parameterisation('epsilon', self.alphas_bar).to(x_t.device).to_x0(eps, x_t, t)

    def predict_xstart_from_xprev(self, x_t, t, xprev):
        """Return the x_0 whose posterior mean in the full chain (paper eq. 7) is xprev, in the shape of x_t."""
        return Parameterisation('xprev', self.alphas_bar).to(x_t.device).to_x0(xprev, x_t, t)

    def predict_eps_from_xstart(self, x_t, t, x_0):
        """eps = (x_t - sqrt(ab_t) x_0) / sqrt(1 - ab_t) (paper eq. 9), in the shape of x_t."""
        tables = self.alphas_bar.sqrt(), (1 - self.alphas_bar).sqrt()
        alpha, sigma = (extract(table.float().to(t.device), t, x_t.shape) for table in tables)
        return (x_t - alpha * x_0) / sigma

    def split(self, out, x_t, t):
        """Return (x0_hat, v) from the network's output at x_t. With clip_denoised, x0_hat is clipped to [-1, 1].

        Both have the shape of x_t, but v has no channels if no variance is learned. Raise ValueError if the number of
        channels of the output does not fit var_type.
        """
        C = x_t.shape[1]
        if out.shape[1] != C * (1 + self.learns_variance):
            raise ValueError(f'var_type {self.var_type} does not fit a network of {out.shape[1]} channels for {C}')
        x0_hat = self.parameterisation.to_x0(out[:, :C], x_t, t)
        return (x0_hat.clamp(-1, 1) if self.clip_denoised else x0_hat), out[:, C:]

    def p_mean_variance(self, x_t, t, y=None):
        """Return the mean, in the shape of x_t, and log variance of p(x_s | x_t) (paper eq. 1), as `p_of` does."""
        return self.p_of(*self.split(_apply(self.model, x_t, t, y), x_t, t), x_t, t)

    def p_of(self, x0_hat, v, x_t, t):
        """Return the mean, in the shape of x_t, and log variance of p(x_s | x_t), from the x0_hat and v of `split`.

        The log variance is [B, 1, 1, 1], as in `q_mean_variance`, or has the shape of x_t if it is learned.
        """
        mean, _ = self.q_mean_variance(x0_hat, x_t, t)
        a, b = (extract(self.columns[i], t, x_t.shape) for i in (4, 5))
        return mean, a + b * v if self.learns_variance else a

    def _steps(self, timesteps):
        return solver_steps(self.alphas_bar, timesteps, self.eta, self.var_type, self.order, self.corrector)

    def trajectory(self, x_T, y=None, start=None, stop=0, noise=standard_normal, project=None):
        """Walk p from x_T to x_0 (Algorithm 2) and yield (t, x_t, x0_hat) after each step.

        t is the number of noisings left in x_t: T - 1 to 0 if every step is taken. x0_hat is the prediction that led
        to x_t. With `start` and `stop` the walk goes from a state x_start (passed as x_T) to x_stop, so that
        trajectory(x_t, start=t) continues a walk that was left at t. It has no earlier predictions then, so it begins
        at order 1. The last x_t is not clipped.

        x_T: [B, ...]. y: int64 [B] or None. noise: x -> z. project: x0_hat -> x0_hat, applied to every prediction
        before a step is made of it, such as `Operator.projection` for images of which some part is known. Solvers of
        every order and their correctors then see the projected predictions alone. Raise ValueError unless
        0 <= stop < start <= T.
        """
        for taken in self.walk(x_T, y, start, stop, noise, project):
            yield taken.s, taken.x_s, taken.x0_hats[0]

    def route(self, start=None, stop=0):
        """Return the steps of a trajectory in the order in which it takes them: (timestep, noisings after it, `Step`).

        Raise ValueError as `trajectory` does.
        """
        start = self.timesteps[-1] + 1 if start is None else start
        if not 0 <= stop < start <= self.T:
            raise ValueError(f'a trajectory needs 0 <= stop < start <= T = {self.T}, not start {start}, stop {stop}')
        chain = sorted({start - 1, *(t for t in self.timesteps if t < start), *([stop - 1] if stop else [])})
        route = zip(chain, [0, *(t + 1 for t in chain)], self._steps(chain), strict=False)
        return [part for part in route if part[0] >= stop][::-1]

    def walk(self, x_T, y=None, start=None, stop=0, noise=standard_normal, project=None):
        """Walk as `trajectory` does, and yield each step as `Taken`, with all that it was made of."""
        yield from self._follow(self.route(start, stop), x_T, y, noise, project)

    def encode(self, x_0, y=None):
        """Walk the ODE of eta = 0 from x_0 to its code x_T, and yield (t, x_t, x0_hat) after each step.

        t is the number of noisings in x_t: from that of the second timestep to that of the last. x_0, [B, C, H, W] in
        [-1, 1], is taken for the state of timestep 0, which it almost is (as improved-diffusion's reverse loop does).
        A trajectory with eta = 0 leads back almost to x_0, more closely the more steps there are. The error of the two
        walks falls with the order of the solver, but not faster than the second without a corrector, because the last
        step up is of order 1.

        Raise ValueError if timestep 0 is the only one.
        """
        chain = sorted({0, *self.timesteps})
        if len(chain) < 2:
            raise ValueError('encoding needs a timestep above 0')
        steps = encoding_steps(self.alphas_bar, chain, self.order, self.corrector)[::-1]
        for taken in self._follow(list(zip(chain, [t + 1 for t in chain[1:]], steps, strict=False)), x_0, y):
            yield taken.s, taken.x_s, taken.x0_hats[0]

    @torch.no_grad()
    def _follow(self, route, x_t, y, noise=None, project=None):
        """Take the steps of a route, as `route` returns it, and yield each as `Taken`."""
        x0_hats = deque(maxlen=len(route[0][-1].c))  # the newest first
        for timestep, left, row in route:
            (cx, c, std, slope), before, z = row, x_t, None
            t = torch.full((1,), timestep, device=x_t.device).expand(len(x_t))
            x0_hat, v = self.split(_apply(self.model, x_t, t, y), x_t, t)
            x0_hat = project(x0_hat) if project else x0_hat
            x0_hats.appendleft(x0_hat)
            x_t = c[0] * x0_hat + cx * x_t
            for c_j, m_j in list(zip(c, x0_hats, strict=False))[1:]:  # the first steps have fewer x0_hats before them
                x_t = x_t + c_j * m_j
            if std > 0:
                std, z = std * torch.exp(0.5 * slope * v) if self.learns_variance else std, noise(x_t)
                x_t = x_t + std * z
            yield Taken(timestep + 1, left, row, before, tuple(x0_hats), std, z, x_t)

    @torch.no_grad()
    def diffuse(self, x_0, start=0, stop=None, noise=standard_normal):
        """Walk q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I) (paper eq. 2) and yield (t, x_t).

        t is the number of noisings in x_t. It goes from start + 1 to stop, by default from 1 to T. x_0 is the state at
        `start`. Raise ValueError unless 0 <= start < stop <= T.
        """
        stop = self.T if stop is None else stop
        if not 0 <= start < stop <= self.T:
            raise ValueError(f'diffusing needs 0 <= start < stop <= T = {self.T}, not start {start}, stop {stop}')
        x_t = x_0
        for t, beta in enumerate(self.betas[start:stop].tolist(), start + 1):
            x_t = (1 - beta) ** 0.5 * x_t + beta**0.5 * noise(x_t)
            yield t, x_t

    def renoise(self, x_s, s, t, z):
        """Return x_t ~ q(x_t | x_s) = N(sqrt(ab_t / ab_s) x_s, (1 - ab_t / ab_s) I), made of z ~ N(0, I) in one step.

        s and t are numbers of noisings, 0 <= s < t <= T; x_0 has ab = 1. All tensors have the shape of x_s.
        """
        kept = self.kept(s, t)
        return kept**0.5 * x_s + (1 - kept) ** 0.5 * z

    def kept(self, s, t):
        """Return ab_t / ab_s, the share of the variance of x_s that is left in x_t; s and t are as in `renoise`."""
        return (self.alphas_bar[t - 1] / (self.alphas_bar[s - 1] if s else 1)).item()

    def forward(self, x_T, y=None, noise=standard_normal):
        """Draw x_0, clipped to [-1, 1], from x_T ~ N(0, I) [B, C, H, W] (Algorithm 2). noise: x -> z ~ N(0, I)."""
        _, x_0, _ = deque(self.trajectory(x_T, y, noise=noise), maxlen=1).pop()
        return clip_image(x_0)
