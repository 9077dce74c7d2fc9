"""Draw from a checkpoint in batches: images as PNG files, one npz and a grid; points as an npz and a figure.

Image i depends only on (seed, i), not on the batch size: each block of 64 images has its own noise generator.
"""

import logging
import os

import numpy as np
import torch

from dataset import shown
from draw import folder, picture, walk
from run import build, distributed, files, inputs, labels
from run.config import replace
from run.restore import run_folder

NUM_IMAGES = 100  # to draw by default


def sample(config, net, interrupted=lambda: False):
    """Draw --num_images (default 100) to --out (default samples/ beside the checkpoint).

    Images: 000000.png..., grid.png and samples.npz, which is as guided-diffusion writes it: arr_0, uint8 [N, H, W, C],
    and if conditional arr_1, the labels, int64 [N]. Images already drawn from the same weights, seed and sampler, in
    the same precision, are kept, so that an interrupted call continues. Points: points.npz (points, float32 [N, 2], and
    labels if conditional) and figure.png, which shows q(x_t) above p(x_t) at ten times.

    config, net: from `restore`. Samples drawn with other weights or settings move to `<out>.prev`. Raises
    FileExistsError if --out holds anything else; DataError if the data set of points cannot be read, or an image that
    was kept has changed.
    """
    out = config.out or os.path.join(run_folder(config), 'samples')
    config = replace(config, num_images=config.num_images or NUM_IMAGES)
    if config.num_classes:
        names = labels.names(config)
        logging.info('labels in turn: %s', shown([names[y] for y in labels.chosen(config)]))
    if build.is_points(config):
        _sample_points(config, net, out, interrupted)
    else:
        folder.fill(config, net, out, config.num_images, _grid, interrupted)


def _grid(paths):
    return picture.grid(folder.read(paths[:256]))


def _sample_points(config, net, out, interrupted):
    if distributed.rank():  # drawing points is quick: rank 0 does it alone
        return
    x_0 = inputs.sample_items(config, inputs.dataset(config), config.num_images).cpu()
    folder.claim(out, folder.fingerprint(config, net))
    sampler = build.sampler(config, None)
    p, q = walk.Snapshots(sampler), walk.Snapshots(sampler)
    indices = list(range(config.num_images))
    points = [x_0.cpu() for _, x_0 in walk.draw(config, net, indices, interrupted, p)]
    if interrupted():
        return
    walk.diffuse(config, sampler, x_0, observe=q)
    arrays = {'points': torch.cat(points).numpy()}
    if config.num_classes:
        arrays['labels'] = labels.of_indices(config, indices).cpu().numpy()
    with files.replacing(os.path.join(out, 'points.npz')) as temporary, open(temporary, 'wb') as file:
        np.savez(file, **arrays)
    rows = [[seen[0] for seen in film.frames.values()] for film in (q, p)]
    titles, what = [f'$t = {t}$' for t in q.frames], ['forward $q$', 'reverse $p$']
    picture.save(os.path.join(out, 'figure.png'), picture.plot(rows, titles, what, arrows=['->', '<-']))
    print(f'{config.num_images} points in {out}: points.npz, figure.png')
