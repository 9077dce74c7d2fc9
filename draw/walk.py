"""Walk from noise to x_0, in batches with one progress bar, and from x_0 to noise."""

import logging
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from diffusion import clip_image
from draw.inference import Inference
from draw.noise import BLOCK, Noise, derive_seed, of_images
from process.schedules import spacing_for
from run import build, compiling, hardware, labels, progress


def denoise(config, sampler, x, y, noise, interrupted, observe=lambda t, x_t, x0_hat: None, start=None, project=None):
    """Walk the sampler from the state x to x_0 and return x_0, in the shape of x, or None if interrupted.

    x: x_T, or the state `start`. y: int64 labels [B] or None. Images are clipped to [-1, 1].
    observe(t, x_t, x0_hat) is called at every state from x to x_0. t is the number of noisings left, and x0_hat is
    predicted from x_t; at the end both tensors are x_0. project: as in `trajectory`; then --resample and --jump say
    how often to go back (see `descents`). Raises FloatingPointError if what it draws is not finite.
    """
    t, x_t = sampler.states[-1] if start is None else start, x
    for top, stop in descents(sampler, t, config.resample if project else 1, config.jump):
        if top > t:
            t, x_t = top, sampler.renoise(x_t, t, top, noise())
        for s, x_s, x0_hat in sampler.trajectory(x_t, y, top, stop, noise, project):
            observe(t, x_t, x0_hat)
            if interrupted():
                return None
            t, x_t = s, x_s
    if (~x_t.isfinite()).any():
        raise FloatingPointError(
            'what the network draws with these flags is not finite: try --precision=fp32, or --guidance and '
            '--eps_scale nearer to 1'
        )
    observe(0, x_t, x_t)
    return x_t if build.is_points(config) else clip_image(x_t)


def descents(sampler, start, resample, jump):
    """Return the parts (from, to) of a walk from the state `start` to 0 that takes each `jump` steps `resample` times.

    Between two parts the walk goes up to the state where the next one begins, by q(x_t | x_s). This is the resampling
    of RePaint (Lugmayr et al. 2022, algorithm 1 and appendix B), which DDNM calls time travel: what was made anew is
    brought into harmony with what is known. As there, the step to the image is taken once, and so are the steps at
    the top that are fewer than `jump`.
    """
    states = sorted({start, *(t for t in sampler.states if t < start)})
    marks, parts = states[1::jump], []
    for low, high in reversed(list(zip(marks, marks[1:], strict=False))):
        for _ in range(resample - 1):
            parts.append((start, low))
            start = high
    return [*parts, (start, 0)]


def diffuse(config, sampler, x_0, stop=None, observe=lambda t, x_t: None):
    """Return x_t after `stop` noisings, by default those of x_T. observe: called with (t, x_t) from x_0 on."""
    seed = derive_seed('diffuse', config.seed)  # differs from the noise of `denoise`
    noise = Noise(seed, range(len(x_0)), x_0.shape[1:], x_0.device)
    x_t = x_0
    observe(0, x_t)
    for t, x_t in sampler.diffuse(x_0, stop=stop or sampler.states[-1], noise=noise):
        observe(t, x_t)
    return x_t


class Snapshots:
    """An observer for `denoise` or `diffuse` that keeps ten evenly spread states, or all if there are fewer.

    `frames`: {noisings: the tensors [N, ...] observed at that state}, ascending.
    """

    def __init__(self, sampler):
        states = sampler.states
        picked = np.linspace(0, len(states) - 1, min(10, len(states))).round().astype(int)
        self.frames = {states[i]: None for i in picked}

    def __call__(self, t, *tensors):
        if t in self.frames:
            new = [x.cpu() for x in tensors]
            before = self.frames[t]  # from earlier batches
            self.frames[t] = new if before is None else [torch.cat(pair) for pair in zip(before, new, strict=True)]


class Edit(NamedTuple):
    """What `draw` makes images of, by default of noise alone. Image i is one of the `variants` of source i // variants.

    sources: float32 [N, ...] in [-1, 1]. They are whole images, which are noised to the state `start` (SDEdit: Meng et
    al. 2022), or, with operator, what is known of the images: operator(rows) is the `Operator` A of the sources with
    these numbers, and a source is y = A x_0.
    """

    sources: torch.Tensor | None = None
    variants: int = 1
    start: int | None = None
    operator: Callable | None = None

    def begin(self, sampler, rows, z):
        """Return the state to walk from, made of z ~ N(0, I), and the `project` of the walk, or None."""
        if self.sources is None:
            return sampler.start(z), None
        sources = self.sources[rows].to(z.device)
        if self.operator is None:
            return sampler.renoise(sources, 0, self.start, z), None
        return sampler.start(z), self.operator(rows).projection(sources)

    def stops(self, sampler, config):
        """Return the noisings left in every state of the walk, in turn. They grow where `descents` goes back up."""
        resample = config.resample if self.operator else 1
        parts = descents(sampler, self.start or sampler.states[-1], resample, config.jump)
        return [t for top, stop in parts for t in (top, *(t for t in sampler.states[::-1] if stop <= t < top))]

    def calls(self, sampler, config):
        """Return how often the network is called for an image."""
        return sum(after < before for before, after in pairwise(self.stops(sampler, config)))


FROM_NOISE = Edit()


def draw(config, net, indices, interrupted=lambda: False, observe=lambda t, x_t, x0_hat: None, edit=FROM_NOISE):
    """Yield (indices, x_0) for each batch of --sample_batch_size; `denoise` gives x_0. Stop early if interrupted.

    edit: an `Edit`. The variants of one source share its label.
    """
    device = hardware.device(config)
    model = Inference(net, hardware.precision(config))
    sampler = build.sampler(config, model).to(device)
    size = max(1, min(config.sample_batch_size or batch_that_fits(config, sampler), len(indices)))
    chunks = [indices[i : i + size] for i in range(0, len(indices), size)]
    calls = edit.calls(sampler, config)
    if edit.operator and config.resample > 1 and calls <= config.jump:
        why = '--resample=%d changes nothing in %d steps of --jump=%d: take a lower --jump or more steps'
        logging.warning(why, config.resample, calls, config.jump)
    compiling.compile_if_it_pays(model, config, len(indices) * calls)
    if len(sampler.timesteps) < config.sample_steps:
        left = len(sampler.timesteps)
        spacing = spacing_for(config.order, config.spacing)
        logging.info('--spacing=%s leaves %d of --sample_steps=%d', spacing, left, config.sample_steps)
    total, what = len(chunks) * calls, 'points' if build.is_points(config) else 'images'
    with progress.bar(total=total, desc=f'sampling {len(indices)} {what}', unit='step') as bar:
        for chunk in chunks:
            n = len(chunk)
            filled = [*chunk, *chunk[-1:] * (size - n if model.compiled else 0)]  # one size, to compile once

            def step(t, x_t, x0_hat, n=n):
                observe(t, x_t[:n], x0_hat[:n])
                bar.update(t > 0)

            noise = of_images(config, filled)
            rows = [i // edit.variants for i in filled]
            y = labels.of_indices(config, rows)
            x, project = edit.begin(sampler, rows, noise())
            x_0 = denoise(config, sampler, x, y, noise, interrupted, step, edit.start, project)
            if x_0 is None:
                return
            yield chunk, x_0[:n]


def batch_that_fits(config, sampler):
    """Return a number of images, a multiple of 64 up to 1024, that uses most of a CUDA device's memory; elsewhere 64.

    On a CPU more is no faster. On other devices torch does not say how much memory is free.
    """
    device = hardware.device(config)
    if device.type != 'cuda':
        return BLOCK
    noise = Noise(0, range(BLOCK), build.shape(config), device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    next(sampler.trajectory(noise(), labels.of_indices(config, range(BLOCK)), noise=noise))
    each = (torch.cuda.max_memory_allocated(device) - before) / BLOCK
    return max(BLOCK, min(1024, int(0.7 * torch.cuda.mem_get_info(device)[0] / each) // BLOCK * BLOCK))
