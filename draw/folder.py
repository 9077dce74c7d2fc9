"""Fill a folder with drawn images: PNG files, one npz and a grid; and know whose they are."""

import hashlib
import json
import os
import re
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from draw import picture, walk
from run import distributed, files, labels
from run.config import complete, drawn_keys

RECORD = 'samples.json'  # in a folder of samples: their `fingerprint`

IMAGE = r'\d{6,}\.png'

LITTER = r'\.DS_Store|Thumbs\.db|desktop\.ini'  # from operating systems

OURS = rf'({IMAGE}|(grid|figure)\.png|(samples|points)\.npz|{RECORD})(\.tmp)?|{LITTER}'


def fingerprint(config, net, edit=None):
    """Return what the images drawn with a config and a network depend on, fit for JSON. edit: what else, or None."""
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return {'weights': digest.hexdigest(), **{key: getattr(config, key) for key in drawn_keys()}, 'edit': edit}


def claim(out, fingerprint):
    """Prepare the folder `out` for samples with this fingerprint; samples with another one move to `<out>.prev`.

    Raises FileExistsError, before any change, if that would move or mix with files that `claim` does not know.
    """
    before, foreign = _held(out)
    before = complete(before)
    changed = [key for key in fingerprint if before.get(key) != fingerprint[key]]
    samples = os.path.isdir(out) and any(name.endswith(('.png', '.npz')) for name in os.listdir(out))
    if samples and changed:
        if foreign:
            raise FileExistsError(f'{out} holds {foreign}, which --sample or --edit did not make: choose another --out')
        _set_aside(out, changed)
    elif foreign.endswith(('.png', '.npz')):
        raise FileExistsError(
            f'{out} holds {foreign}, which --sample or --edit did not make: choose another --out or move it'
        )
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


def fill(config, net, out, n, grid, interrupted, edit=walk.FROM_NOISE, of=None):
    """Draw n images to `out` with `walk.draw`, the ranks together: 000000.png..., samples.npz and grid.png.

    Images are kept if they are there from an earlier call for the same. grid: makes grid.png of the images' paths.
    edit: a `walk.Edit`; of: what it depends on, for the `fingerprint`.
    """
    with distributed.main_first():
        if not distributed.rank():
            claim(out, fingerprint(config, net, of))
    paths = [os.path.join(out, f'{i:06d}.png') for i in range(n)]
    pending = distributed.from_main([i for i, path in enumerate(paths) if not os.path.exists(path)])
    if pending:
        part = pending[distributed.share(len(pending))]
        _write(paths, walk.draw(config, net, part, interrupted, edit=edit))
    stopped = distributed.any_rank(interrupted())
    if distributed.rank():
        return
    if stopped:
        there = sum(map(os.path.exists, paths))
        print(f'stopped: {there} of {n} images in {out}; the same command draws the others')
        return
    rows = [i // edit.variants for i in range(n)]
    _pack(os.path.join(out, 'samples.npz'), paths, labels.of_indices(config, rows) if labels.count(config) else None)
    picture.save(os.path.join(out, 'grid.png'), grid(paths))
    drawn = '' if pending else ', all drawn before'
    print(f'{n} images in {out}{drawn}: 000000.png..., samples.npz, grid.png')
    if more := sum(bool(re.fullmatch(IMAGE, name)) for name in os.listdir(out)) - n:
        print(f'  {more} more of an earlier call lie there, which samples.npz and grid.png leave out')


def read(paths):
    """Return images that `fill` has drawn, uint8 [N, C, H, W]."""
    images = np.stack([np.array(Image.open(path)) for path in paths])
    return torch.from_numpy(images.reshape(*images.shape[:3], -1)).permute(0, 3, 1, 2)


def _write(paths, batches):
    """Write images to their paths, each batch while the next is drawn. batches: of (indices, x_0), as `walk.draw`."""
    with ThreadPoolExecutor(1) as writer:
        written = writer.submit(_write_batch, [], [])
        for chunk, x_0 in batches:
            images = picture.to_uint8(x_0).permute(0, 2, 3, 1).cpu().numpy()
            written.result()
            written = writer.submit(_write_batch, [paths[i] for i in chunk], images)
        written.result()


def _write_batch(paths, images):
    for path, image in zip(paths, images, strict=True):
        picture.save(path, Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image))


def _pack(path, images, y):
    """Save images and labels as np.savez does, but one at a time: 50,000 of 256x256 would not fit in memory."""
    shape = len(images), *read(images[:1]).permute(0, 2, 3, 1).shape[1:]
    header = {'descr': '|u1', 'fortran_order': False, 'shape': shape}
    with files.replacing(path) as temporary, zipfile.ZipFile(temporary, 'w') as archive:
        with archive.open(zipfile.ZipInfo('arr_0.npy'), 'w', force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for image in images:
                file.write(np.asarray(Image.open(image)).tobytes())
        if y is not None:
            with archive.open(zipfile.ZipInfo('arr_1.npy'), 'w') as file:
                np.lib.format.write_array(file, y.cpu().numpy())
