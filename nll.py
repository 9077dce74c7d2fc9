"""--nll: compute a checkpoint's variational bound in bits/dim, by term (Ho et al. 2020, table 1 and figure 5).

Images stream from the data set into float64 sums. The noise of image i, and the choice of terms
that are computed for it, depend only on (seed, i), not on the batch size.
"""

import os
import time

import numpy as np
import torch

import score
from draw import picture, walk
from draw.inference import Inference
from draw.noise import Noise, derive_seed
from process.bound import prior_term, variational_term
from process.parameterisations import extract
from run import build, compiling, distributed, files, hardware, inputs, progress, records
from run.config import recorded_keys, replace
from run.errors import UsageError, usage
from run.restore import run_folder

GOLDEN = (5**0.5 - 1) / 2  # any number of its multiples, modulo 1, are spread evenly


def nll(config, net, step=None, interrupted=lambda: False):
    """Compute -log p(x_0) <= L_T + sum_t L_{t-1} (paper eq. 5), the mean over --split (default test), in bits/dim.

    Prints the bound, appends it to logdir/nll.txt as one line of JSON, and writes nll.npz and nll.png beside it: the
    mean term and the mean squared error of x0_hat, clipped to [-1, 1], of each timestep; L_T and the total of each
    image, in order. Returns the record, or None if interrupted.

    config, net, step: from `restore`. The chain follows the flags at eta = 1, with all T steps unless --sample_steps
    is given. Each rank takes a share of the images; rank 0 returns the record.

    Raises UsageError for points and as `term_probabilities`, DataError if the network cannot take the images.
    """
    if build.is_points(config):
        raise UsageError('--nll is of 8-bit images: points are scored by --eval')
    begin = time.monotonic()
    config = replace(config, eta=1.0, order=1, corrector=False, eps_scale=1.0, split=config.split or 'test')
    device = hardware.device(config)
    # As for the other scores: float32 unless bf16 is asked for.
    model = Inference(net, torch.bfloat16 if config.precision == 'bf16' else torch.float32)
    sampler = build.sampler(config, model).to(device)
    steps = config.nll_steps or len(sampler.timesteps)
    with usage():
        p = term_probabilities(sampler.alphas_bar[sampler.timesteps], steps)
    with distributed.first_here():  # one rank of each machine downloads
        data = inputs.dataset(config, config.split)
    inputs.check_channels(config, data)
    inputs.check_classes(config, data)
    size = config.sample_batch_size or walk.batch_that_fits(config, sampler)
    share = range(len(data))[distributed.share(len(data))]
    compiling.compile_if_it_pays(model, config, len(share) * steps)
    total, what = -(-len(share) // size) * steps, f'{len(data)} images of {config.split}'
    with progress.bar(total=total, desc=what, unit='step') as bar:

        def advance():
            bar.update()
            return not interrupted()

        with score.full_fp32(device):
            bound = estimate(sampler, _batches(config, data, size, share), len(data), p, config.seed, advance)
    if distributed.any_rank(bound is None):
        return None
    bound.reduce(distributed.all_sum)
    if distributed.rank():
        return None
    result, arrays = bound.result()
    sampling = {key: getattr(config, key) for key in (*recorded_keys(), 'T', 'seed', 'split')}
    made = {'n': len(data), 'nll_steps': steps, 'precision': str(model.dtype), 'seconds': time.monotonic() - begin}
    record = {'step': step, 'weights': config.weights, **result, **sampling, **made}
    _report(config, record, len(sampler.timesteps))
    _write(config, record, np.array(sampler.timesteps), arrays)
    return record


def _write(config, record, t, arrays):
    """Append the record to nll.txt; write nll.npz and nll.png. t: the timesteps [N]. arrays: from `Bound.result`."""
    folder = run_folder(config)
    records.append(os.path.join(folder, 'nll.txt'), record)
    with files.replacing(os.path.join(folder, 'nll.npz')) as temporary, open(temporary, 'wb') as file:
        np.savez(file, t=t, **{name: values.numpy() for name, values in arrays.items()})
    name = os.path.basename(os.path.abspath(config.dataset)).replace('$', r'\$')  # a folder's name is not mathtext
    scored = f'{record["n"]} images of {name} ({config.split})'
    picture.save(os.path.join(folder, 'nll.png'), draw(t, record['L_T'], arrays['terms'], arrays['x0_mse'], scored))


def _batches(config, data, size, share):
    start = share.start
    for x, y in inputs.in_order(config, data, size, slice(share.start, share.stop)):
        indices = torch.arange(start, start + len(x))
        start += len(x)
        y = y.to(hardware.device(config)) if config.num_classes else None
        yield indices, data.prepare(x.to(hardware.device(config))), y


def _report(config, record, terms):
    error = '' if record['standard_error'] is None else f' +- {record["standard_error"]:.4f}'
    print(
        f'Model({config.weights.upper()}): {record["bits_per_dim"]:.4f}{error} bits/dim: '
        f'L_T {record["L_T"]:.5f}, L_1 to L_T-1 {record["L_1_to_T-1"]:.4f}, L_0 {record["L_0"]:.4f}'
    )
    how = 'every term' if record['nll_steps'] == terms else f'an estimate from {record["nll_steps"]} terms an image'
    print(
        f'  {record["n"]} images of {config.split}, {terms} steps, {how}, {config.var_type}, {record["precision"]}, '
        f'{record["seconds"]:.0f} s'
    )


def draw(t, prior, terms, x0_mse, scored):
    """Plot the terms over t, and the distortion over the rate as noise is removed (paper figure 5).

    t: the timesteps [N]. prior: L_T. terms: [N], in bits/dim. x0_mse: [N]. The rate at t is the sum of L_T and all
    terms above t; the distortion is the root of x0_mse, on [0, 255]. scored: a description of the images.
    """
    rate = (prior + terms.sum() - terms.cumsum(0)).numpy()
    seen = x0_mse.isfinite().numpy()
    distortion = 127.5 * x0_mse.sqrt().numpy()
    whole = prior + terms.sum().item()
    return picture.curves(
        {
            'x': t[seen] + 1,
            'y': terms.numpy()[seen],
            'title': 'terms of the bound',
            'xlabel': '$t$, noisings',
            'ylabel': '$L_{t-1}$, bits/dim',
            'xscale': 'log',
            'yscale': 'log',
        },
        {
            'x': np.append(rate[seen][::-1], whole),
            'y': np.append(distortion[seen][::-1], 0),
            'title': 'progressive coding',
            'xlabel': 'rate, bits/dim',
            'ylabel': 'distortion, RMSE on [0, 255]',
        },
        title=rf'Variational bound of $-\log\,p(x)$: {whole:.3f} bits/dim, the mean of {scored}',
    )


class Bound:
    """float64 sums of the bound's terms over images, by timestep or image. The sums of parts of the images add up."""

    def __init__(self, timesteps, images):
        self.terms, self.squares, self.visits = torch.zeros(3, timesteps, dtype=torch.float64)
        self.prior, self.totals = torch.zeros(2, images, dtype=torch.float64)

    def add(self, indices, prior, rows, terms, squares, p):
        """Add a batch of B images: `indices` and their L_T [B], and S terms for each image.

        rows, terms, squares, p: [B, S]; the indices of timesteps, the terms in bits/dim, the mean squared errors of
        x0_hat, and the probability with which each term was computed.
        """
        weighted = terms / p
        self.prior[indices] = prior
        self.totals[indices] = prior + weighted.sum(1)
        for sums, values in ((self.terms, weighted), (self.squares, squares), (self.visits, torch.ones_like(terms))):
            sums.index_add_(0, rows.flatten(), values.flatten())

    def reduce(self, all_sum):
        """Replace each process's sums by those over all processes. all_sum(tensor) sums a tensor over them in place."""
        for sums in vars(self).values():
            all_sum(sums)

    def result(self):
        """Return (means over images in bits/dim and the standard error of the total, arrays by timestep or image).

        One image alone has no standard error: it is None.
        """
        n = len(self.totals)
        terms = self.terms / n
        return {
            'bits_per_dim': self.totals.mean().item(),
            'standard_error': self.totals.std().item() / n**0.5 if n > 1 else None,
            'L_T': self.prior.mean().item(),
            'L_1_to_T-1': terms[1:].sum().item(),
            'L_0': terms[0].item(),
        }, {'terms': terms, 'x0_mse': self.squares / self.visits, 'prior': self.prior, 'totals': self.totals}


def term_probabilities(alphas_bar, steps):
    """Return p proportional to 1/(N-1) + bits_t / sum(bits), capped at 1; L_0 has p = 1.

    p: float64 [N], the probability that a term of the chain is among the `steps` terms computed for an image. bits_t
    is the size of the term if x_0 ~ N(0, I). alphas_bar: [N], ascending in t.

    Raises ValueError if `steps` is not between 2 and N.
    """
    N = len(alphas_bar)
    if not min(2, N) <= steps <= N:
        raise ValueError(f'--nll_steps must be between 2 and the {N} steps of the chain, not {steps}')
    bits = (1 - alphas_bar).log().diff()
    wanted = torch.cat([torch.full((1,), torch.inf, dtype=torch.float64), bits / bits.sum() + 1 / max(1, len(bits))])
    certain = wanted.isinf() | (steps == N)
    while True:
        share = torch.where(certain, 0, wanted)
        p = torch.where(certain, 1, share * ((steps - certain.sum()) / share.sum().clamp(min=1e-300)))
        if (p <= 1).all():
            return p
        certain |= p > 1


def pick_terms(p, indices, seed):
    """Return rows [B, S], S terms for each image; term r is picked with probability p[r] (systematic sampling)."""
    u = (derive_seed('nll', seed) / 2**63 + GOLDEN * indices.double()) % 1
    teeth = u[:, None] + torch.arange(round(p.sum().item()))
    return torch.searchsorted(p.cumsum(0), teeth, right=True).clamp(max=len(p) - 1)


def estimate(sampler, batches, n, p, seed, advance=lambda: True):
    """Return the `Bound` of n images under the chain of `sampler`.

    batches: yields (indices int64 [B], x_0 in [-1, 1] [B, C, H, W], y int64 [B] or None). p: from
    `term_probabilities`. advance: called after each term of a batch; if it returns False, the result is None.
    """
    device = sampler.columns.device
    exact = score.exact_device(device)
    timesteps = torch.tensor(sampler.timesteps)
    alpha, sigma = (x.sqrt().float().to(device) for x in (sampler.alphas_bar, 1 - sampler.alphas_bar))
    bound = Bound(len(timesteps), n)
    for indices, x_0, y in batches:
        noise = Noise(derive_seed('nll', seed), indices.tolist(), x_0.shape[1:], device)
        rows = pick_terms(p, indices, seed)
        computed = []
        for t in timesteps[rows].to(device).unbind(1):
            x_t = extract(alpha, t, x_0.shape) * x_0 + extract(sigma, t, x_0.shape) * noise()
            term, x0_hat = variational_term(sampler, x_0, x_t, t, sampler.model(x_t, t, y))
            square = (x_0 - x0_hat.clamp(-1, 1)) ** 2
            computed.append(torch.stack([each.to(exact).double().flatten(1).mean(1) for each in (term, square)]))
            if not advance():
                return None
        terms, squares = torch.stack(computed, dim=2).cpu()  # [B, S] each
        prior = prior_term(sampler, x_0).to(exact).double().flatten(1).mean(1)
        bound.add(indices, prior.cpu(), rows, terms, squares, p[rows])
    return bound
