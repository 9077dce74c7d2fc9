"""Draw from a checkpoint in batches: images as PNG files, one npz and a grid; points as an npz and a figure.

Image i depends only on (seed, i), not on the batch size: each block of 64 images has its own noise generator.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from dataset import shown
from draw import picture, walk
from run import build, distributed, files, inputs, labels
from run.config import complete, drawn_keys, replace
from run.restore import run_folder

NUM_IMAGES = 100  # to draw by default

RECORD = 'samples.json'  # in a folder of samples: their `_fingerprint`

IMAGE = r'\d{6,}\.png'

LITTER = r'\.DS_Store|Thumbs\.db|desktop\.ini'  # from operating systems

OURS = rf'({IMAGE}|(grid|figure)\.png|(samples|points)\.npz|{RECORD})(\.tmp)?|{LITTER}'


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
    _claim(out, _fingerprint(config, net))
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
            _claim(out, _fingerprint(config, net))
    paths = [os.path.join(out, f'{i:06d}.png') for i in range(config.num_images)]
    pending = distributed.from_main([i for i, path in enumerate(paths) if not os.path.exists(path)])
    if pending:
        with ThreadPoolExecutor(1) as writer:  # writes a batch while the next is drawn
            written = writer.submit(_write, [], [])
            for chunk, x_0 in walk.draw(config, net, pending[distributed.share(len(pending))], interrupted):
                images = picture.to_uint8(x_0).permute(0, 2, 3, 1).cpu().numpy()
                written.result()
                written = writer.submit(_write, [paths[i] for i in chunk], images)
            written.result()
    stopped = distributed.any_rank(interrupted())
    if distributed.rank():
        return
    if stopped:
        there = sum(map(os.path.exists, paths))
        print(f'stopped: {there} of {len(paths)} images in {out}; the same command draws the others')
        return
    channels, height, width = build.shape(config)
    shape = height, width, channels
    drawn_as = labels.of_indices(config, range(len(paths))) if config.guidance else None  # at 0 labels do not count
    _pack(os.path.join(out, 'samples.npz'), paths, shape, drawn_as)
    shown = np.stack([np.array(Image.open(path)).reshape(shape) for path in paths[:256]])
    picture.save(os.path.join(out, 'grid.png'), picture.grid(torch.from_numpy(shown).permute(0, 3, 1, 2)))
    more = sum(bool(re.fullmatch(IMAGE, name)) for name in os.listdir(out)) - len(paths)
    drawn = '' if pending else ', all drawn before'
    print(f'{len(paths)} images in {out}{drawn}: 000000.png..., samples.npz, grid.png')
    if more:
        print(f'  {more} more of an earlier call lie there, which samples.npz and grid.png leave out')


def _write(paths, images):
    for path, image in zip(paths, images, strict=True):
        picture.save(path, Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image))


def _fingerprint(config, net):
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return {'weights': digest.hexdigest(), **{key: getattr(config, key) for key in drawn_keys()}}


def _claim(out, fingerprint):
    """Prepare the folder `out` for samples with this fingerprint; samples with another one move to `<out>.prev`.

    Raises FileExistsError, before any change, if that would move or mix with files that `sample` did not make.
    """
    before, foreign = _held(out)
    before = complete(before)
    changed = [key for key in fingerprint if before.get(key) != fingerprint[key]]
    samples = os.path.isdir(out) and any(name.endswith(('.png', '.npz')) for name in os.listdir(out))
    if samples and changed:
        if foreign:
            raise FileExistsError(f'{out} holds {foreign}, which --sample did not make: choose another --out')
        _set_aside(out, changed)
    elif foreign.endswith(('.png', '.npz')):
        raise FileExistsError(f'{out} holds {foreign}, which --sample did not make: choose another --out or move it')
    os.makedirs(out, exist_ok=True)
    files.write_text(os.path.join(out, RECORD), json.dumps(fingerprint))


def _held(out):
    """Return a folder's fingerprint, {} if it has none, and the name of a file there that is not ours, or ''.

    Without a fingerprint, no file counts as ours.
    """
    try:
        with open(os.path.join(out, RECORD)) as file:
            before = json.load(file)
        ours = OURS if 'weights' in before else LITTER
    except (OSError, ValueError, TypeError):
        before, ours = {}, LITTER
    entries = sorted(os.scandir(out), key=lambda entry: entry.name) if os.path.isdir(out) else []
    files = [entry.name for entry in entries if entry.is_file(follow_symlinks=False) and re.fullmatch(ours, entry.name)]
    foreign = [entry.name for entry in entries if entry.name not in files]
    pictures = [name for name in foreign if name.endswith(('.png', '.npz'))]
    return before, (pictures + foreign + [''])[0]


def _set_aside(out, changed):
    """Rename a folder of our samples to `<out>.prev`, and replace a folder of that name if it is ours too."""
    folder = os.path.realpath(out)
    kept = f'{folder}.prev'
    if os.path.commonpath([folder, os.getcwd()]) == folder:
        raise FileExistsError(f'{out} is the working folder and holds other samples: choose another --out')
    if os.path.lexists(kept):
        before, foreign = _held(kept)
        if foreign or not before:
            raise FileExistsError(
                f'{out} holds other samples, and {kept} is in the way: move it or choose another --out'
            )
        shutil.rmtree(kept)
    os.rename(folder, kept)
    shown = f'{os.path.normpath(out)}.prev' if os.path.abspath(out) == folder else kept
    print(f'{out} held samples of other {", ".join(changed)}: they are in {shown} now')


def _pack(path, images, shape, y=None):
    """Save images and labels as np.savez does, but one at a time: 50,000 of 256x256 would not fit in memory."""
    header = {'descr': '|u1', 'fortran_order': False, 'shape': (len(images), *shape)}
    with (
        files.replacing(path) as temporary,
        zipfile.ZipFile(temporary, 'w') as archive,
    ):
        with archive.open(zipfile.ZipInfo('arr_0.npy'), 'w', force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for image in images:
                file.write(np.asarray(Image.open(image)).tobytes())
        if y is not None:
            with archive.open(zipfile.ZipInfo('arr_1.npy'), 'w') as file:
                np.lib.format.write_array(file, y.cpu().numpy())
