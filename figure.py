"""Draw figures of a diffusion of images: denoising, the forward process, guidance, mixtures, nearest images."""

import logging
import os

import torch

import score
from dataset import loader
from draw import picture, walk
from draw.inference import Inference
from draw.noise import of_images
from run import build, hardware, inputs, labels, progress
from run.config import replace
from run.errors import UsageError
from run.events import note
from run.reference import load_feature_net, load_features
from run.restore import run_folder

WEIGHTS = (0, 1, 2, 5, 10)  # guidance weights
SPLITS = 'train', 'test'
SAMPLES = 4  # the most samples, images or pairs in a figure
STEPS = (5, 10, 20, 50)  # of reconstructions


def figure(config, net, step, interrupted=lambda: False):
    """Draw --figure to <kind>.png in --out, by default figures/ beside the checkpoint, and to TensorBoard.

    config, net, step: as `restore` returns them. Raise UsageError if this network or these flags cannot give the
    figure, and DataError if the figure needs images of the data set and they cannot be read.
    """
    if build.is_points(config):
        raise UsageError(f'--figure={config.figure} is of images: for points, --sample draws figure.png')
    drawn = FIGURES[config.figure](config, net, interrupted)
    if interrupted():
        return
    out = config.out or os.path.join(run_folder(config), 'figures')
    os.makedirs(out, exist_ok=True)
    path = os.path.join(out, f'{config.figure}.png')
    picture.save(path, drawn)
    note(config, run_folder(config), step, images={f'figure/{config.figure}': drawn})
    print(f'{config.figure} in {path}')


def progressive(config, net, interrupted):
    """Draw x_t at ten times of Algorithm 2, and below each the x0_hat predicted from it (paper figure 6)."""
    film, n = walk.Snapshots(build.sampler(config, None)), _few(config)
    for _ in walk.draw(config, net, list(range(n)), interrupted, film):
        pass
    if interrupted():
        return None
    frames = dict(reversed(film.frames.items()))
    rows = [torch.stack([tensors[part][i] for tensors in frames.values()]) for i in range(n) for part in (0, 1)]
    return picture.table(rows, [f'$t = {t}$' for t in frames], ['$x_t$', r'$\hat{x}_0$'] * n, group=2)


def forward(config, net, interrupted):
    """Draw x_t of real images at ten times of the forward process q (paper eq. 2)."""
    sampler = build.sampler(config, None)
    film = walk.Snapshots(sampler)
    walk.diffuse(config, sampler, _real_images(config, _few(config)), observe=film)
    rows = torch.stack([x_t for (x_t,) in film.frames.values()], dim=1)  # [n, times, C, H, W]
    return picture.table(rows, [f'$t = {t}$' for t in film.frames], ['$x_t$'] * len(rows), group=1)


def guidance(config, net, interrupted):
    """Draw a row for each label, from one noise, and a column for each guidance weight (Ho and Salimans 2022).

    Without labels, which takes --guide_by, there is a row for each of --num_images noises, at most `SAMPLES`.
    """
    chosen = labels.chosen(config)
    if chosen is None and not config.guide_by:
        raise UsageError('--figure=guidance needs a checkpoint trained with --cond, or --guide_by')
    net = Inference(net, hardware.precision(config))
    rows = [0] * len(chosen) if chosen else range(_few(config))
    y, columns = labels.of_indices(config, range(len(rows))), []
    for w in progress.bar(WEIGHTS, 'guidance', unit='weight'):
        guided = replace(config, guidance=w)
        columns.append(_denoise(guided, net, rows, interrupted, y=y))
        if interrupted():
            return None
    names = [name.replace('$', r'\$') for name in labels.names(config)]  # a $ would start mathtext
    names = [names[y] for y in chosen] if chosen else None
    return picture.table(torch.stack(columns, dim=1), [f'$w = {w}$' for w in WEIGHTS], names)


def reconstruct(config, net, interrupted):
    """Draw real images, their codes, and what DDIM's ODE makes of them in ever more steps. No labels are used."""
    config = replace(config, eta=0.0, timesteps=[])
    net, x_0 = Inference(net, hardware.precision(config)), _real_images(config, _few(config))
    columns, titles, errors = [x_0], ['source'], []
    most = config.sample_steps or config.T
    counts = [*(S for S in STEPS if most > S), most]
    for S in progress.bar(counts, 'reconstructing', unit='round trip'):
        there = replace(config, sample_steps=S)
        x_T = _encode(there, net, x_0, interrupted)
        if x_T is None or (back := _denoise(there, net, range(len(x_0)), interrupted, x=x_T)) is None:
            return None
        columns.append(back)
        titles.append(f'{S} steps')
        errors.append(f'{(back - x_0).square().mean().sqrt().item():.3f} in {S} steps')
    logging.info('root mean square error of the reconstruction, in units of [-1, 1]: %s', ', '.join(errors))
    columns.insert(1, x_T)
    titles.insert(1, '$x_T$')
    return picture.table(torch.stack(columns, dim=1), titles, group=1)


def interpolate(config, net, interrupted):
    """Mix pairs of real images, as --between says, in steps of a tenth; each row uses one noise. No labels are used.

    states: (1 - lambda) q(x_t | a) + lambda q(x_t | b), t = --figure_t, denoised (paper figure 8). codes: between the
    codes of a and b, along the sphere, decoded at eta = 0 (DDIM section 5.3).
    """
    codes = config.between == 'codes'
    config = replace(config, eta=0.0) if codes else config
    net = Inference(net, hardware.precision(config))
    sampler = build.sampler(config, net)
    t = config.figure_t or sampler.T // 2
    if t > sampler.T:
        raise UsageError(f'--figure_t={t}: the checkpoint has T = {sampler.T} steps')
    ends = _real_images(config, 2 * SAMPLES)
    if len(ends) < 2:
        raise UsageError(f'--figure=interpolate mixes pairs of images, and {config.dataset} has only one image')
    ends = ends[: len(ends) // 2 * 2]
    x_t = _encode(config, net, ends, interrupted) if codes else walk.diffuse(config, sampler, ends, stop=t)
    if x_t is None:
        return None
    quadruples, rows = list(zip(*ends.chunk(2), *x_t.chunk(2), strict=True)), []
    for i, (a, b, a_t, b_t) in enumerate(progress.bar(quadruples, 'interpolating', unit='pair')):
        mixed = torch.stack([(slerp if codes else torch.lerp)(a_t, b_t, tenths / 10) for tenths in range(11)])
        denoised = _denoise(config, net, [i] * len(mixed), interrupted, x=mixed, start=None if codes else t)
        if interrupted():
            return None
        rows.append(torch.cat([a[None], denoised, b[None]]))
    titles = ['source', 'rec.', *(rf'$\lambda = {tenths / 10}$' for tenths in range(1, 10)), 'rec.', 'source']
    return picture.table(rows, titles, ['codes' if codes else f'$t = {t}$'] * len(rows), group=1)


def nearest(config, net, interrupted):
    """Draw samples beside the training images nearest to them, in pixels and in the features of --feature_net."""
    indices = list(range(_few(config)))
    drawn = [picture.to_uint8(x_0).cpu() for _, x_0 in walk.draw(config, net, indices, interrupted)]
    if interrupted():
        return None
    samples, data, feature_net = torch.cat(drawn), inputs.dataset(config), load_feature_net(config)
    inputs.check_channels(config, data)
    features = load_features(config, feature_net, 'train').rows
    _, row = score.nearest(feature_net(samples)[0].float().cpu(), torch.from_numpy(features))
    in_features = loader.pick(data, score.kept_indices(len(data), len(features))[row[:, 0]])
    in_pixels = _nearest_in_pixels(config, data, samples)
    errors = [(image.float() - samples.float()).square().mean((1, 2, 3)).sqrt() for image in (in_pixels, in_features)]
    text = 'root mean square difference from the samples, in units of 255: in pixels %s, in features %s'
    logging.info(text, *(', '.join(f'{error:.1f}' for error in each.tolist()) for each in errors))
    rows = data.prepare(torch.stack([samples, in_pixels, in_features], dim=1))
    return picture.table(rows, ['sample', 'in pixels', 'in features'], group=1)


def _nearest_in_pixels(config, data, samples):
    """Return the image of a data set nearest to each sample, in the samples' shape, uint8."""
    found, least = samples.clone(), torch.full([len(samples)], float('inf'), dtype=torch.float64)
    for x, _ in progress.counted(inputs.in_order(config, data), 'nearest', len(data), 'image'):
        squares, row = (part[:, 0] for part in score.nearest(samples.flatten(1).float(), x.flatten(1).float()))
        closer = squares < least
        least[closer], found[closer] = squares[closer], x[row[closer]]
    return found


def distances(config, net, interrupted):
    """Plot how near samples and held-out images come to the training images: are the samples copies?

    It is the distribution behind Delta_T of `score.authenticity`, of the features of --feature_net.
    """
    n = config.num_images or 500
    drawn = [picture.to_uint8(x_0).cpu() for _, x_0 in walk.draw(config, net, list(range(n)), interrupted)]
    if interrupted():
        return None
    feature_net = load_feature_net(config)
    training, held_out = (torch.from_numpy(load_features(config, feature_net, split).rows) for split in SPLITS)
    ours = torch.cat([feature_net(part)[0].float().cpu() for part in drawn])
    nearest_of = {f'{n} samples': ours, f'{len(held_out)} held-out images': held_out}
    share = torch.linspace(0, 1, 101, dtype=torch.float64)
    reach = [score.nearest(side, training)[0][:, 0].sqrt().quantile(share) for side in nearest_of.values()]
    panel = {'x': torch.stack(reach, dim=1), 'y': share, 'label': list(nearest_of), 'ylabel': 'share of the images'}
    panel['xlabel'] = 'distance to the nearest training image'
    return picture.curves(panel, title=f'{config.feature_net} features, {len(training)} training images')


def slerp(a, b, share):
    """Return the point `share` of the way from a to b, tensors of one shape, along a great circle (DDIM eq. 67)."""
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    if angle.sin() < 1e-4:  # almost the same direction, or opposite ones
        return torch.lerp(a, b, share)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / angle.sin()


def _few(config):
    """Return the number of samples or images in a figure."""
    return min(config.num_images or SAMPLES, SAMPLES)


def _real_images(config, n):
    data = inputs.dataset(config)
    inputs.check_channels(config, data)
    return inputs.sample_items(config, data, n)


def _encode(config, net, x_0, interrupted):
    """Return the codes of images, in their shape, or None if interrupted."""
    sampler, x_T = build.sampler(config, net).to(x_0.device), x_0
    if sampler.states[-1] == 1:
        raise UsageError('the only timestep of these flags is 0, and codes need one above it: add to --sample_steps')
    for _, x_T, _ in sampler.encode(x_0):
        if interrupted():
            return None
    return x_T


def _denoise(config, net, indices, interrupted, x=None, y=None, start=None):
    """Denoise the state x, by default x_T, to x_0, with the noise of the images `indices`, which may repeat."""
    noise = of_images(config, indices)
    sampler = build.sampler(config, net).to(hardware.device(config))
    return walk.denoise(config, sampler, sampler.start(noise()) if x is None else x, y, noise, interrupted, start=start)


FIGURES = {
    function.__name__: function
    for function in (progressive, forward, guidance, reconstruct, interpolate, nearest, distances)
}
