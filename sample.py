"""Draw from a checkpoint in batches: images as PNG files, one npz and a grid; points as an npz and a figure.

Image i depends only on (seed, i), not on the batch size: each block of 64 images has its own noise generator.
"""

import logging
import os

import numpy as np
import torch
from PIL import Image

from dataset import shown
from draw import folder, picture, walk
from run import build, distributed, files, inputs, labels
from run.config import replace
from run.restore import run_folder

NUM_IMAGES = 100  # to draw by default


def sample(config, net, interrupted=lambda: False):
    """Draw --num_images (default 100) to --out (default samples/ beside the checkpoint).

    Images: 000000.png..., grid.png and samples.npz, which is as guided-diffusion writes it: arr_0, uint8 [N, H, W, C],
    and if conditional arr_1, the labels, int64 [N]. Images already drawn from the same weights, seed and sampler are
    kept, so that an interrupted call continues. Points: points.npz (points, float32 [N, 2], and labels if conditional)
    and figure.png, which shows q(x_t) above p(x_t) at ten times.

    config, net: from `restore`. Samples drawn with other weights or settings move to `<out>.prev`. Raises
    FileExistsError if --out holds anything else; DataError if the data set of points cannot be read.
    """
    out = config.out or os.path.join(run_folder(config), 'samples')
    config = replace(config, num_images=config.num_images or NUM_IMAGES)
    if config.num_classes:
        names = labels.names(config)
        logging.info('labels in turn: %s', shown([names[y] for y in labels.chosen(config)]))
    (_sample_points if build.is_points(config) else _sample_images)(config, net, out, interrupted)


def _sample_points(config, net, out, interrupted):
    if distributed.rank():  # drawing points is quick: rank 0 does it alone
        return
    folder.claim(out, folder.fingerprint(config, net))
    sampler = build.sampler(config, None)
    p, q = walk.Snapshots(sampler), walk.Snapshots(sampler)
    indices = list(range(config.num_images))
    points = [x_0.cpu() for _, x_0 in walk.draw(config, net, indices, interrupted, p)]
    if interrupted():
        return
    walk.diffuse(
        config, sampler, inputs.sample_items(config, inputs.dataset(config), config.num_images).cpu(), observe=q
    )
    arrays = {'points': torch.cat(points).numpy()}
    if config.num_classes:
        arrays['labels'] = labels.of_indices(config, indices).cpu().numpy()
    with files.replacing(os.path.join(out, 'points.npz')) as temporary, open(temporary, 'wb') as file:
        np.savez(file, **arrays)
    rows = [[seen[0] for seen in film.frames.values()] for film in (q, p)]
    titles, what = [f'$t = {t}$' for t in q.frames], ['forward $q$', 'reverse $p$']
    picture.save(os.path.join(out, 'figure.png'), picture.plot(rows, titles, what, arrows=['->', '<-']))
    print(f'{config.num_images} points in {out}: points.npz, figure.png')


def _sample_images(config, net, out, interrupted):
    with distributed.main_first():
        if not distributed.rank():
            folder.claim(out, folder.fingerprint(config, net))
    paths = [os.path.join(out, f'{i:06d}.png') for i in range(config.num_images)]
    pending = distributed.from_main([i for i, path in enumerate(paths) if not os.path.exists(path)])
    if pending:
        folder.write(paths, walk.draw(config, net, pending[distributed.share(len(pending))], interrupted))
    stopped = distributed.any_rank(interrupted())
    if distributed.rank():
        return
    if stopped:
        there = sum(map(os.path.exists, paths))
        print(f'stopped: {there} of {len(paths)} images in {out}; the same command draws the others')
        return
    channels, height, width = build.shape(config)
    shape = height, width, channels
    drawn_as = labels.of_indices(config, range(len(paths))) if labels.count(config) else None
    folder.pack(os.path.join(out, 'samples.npz'), paths, shape, drawn_as)
    shown = np.stack([np.array(Image.open(path)).reshape(shape) for path in paths[:256]])
    picture.save(os.path.join(out, 'grid.png'), picture.grid(torch.from_numpy(shown).permute(0, 3, 1, 2)))
    more = folder.count(out) - len(paths)
    drawn = '' if pending else ', all drawn before'
    print(f'{len(paths)} images in {out}{drawn}: 000000.png..., samples.npz, grid.png')
    if more:
        print(f'  {more} more of an earlier call lie there, which samples.npz and grid.png leave out')
