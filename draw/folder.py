"""Fill a folder with drawn images: PNG files, one npz and a grid; and know whose they are."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataset import DataError
from draw import picture, walk
from run import build, distributed, files, hardware, labels
from run.config import complete, drawn_keys

RECORD = 'samples.json'  # in a folder of samples: their `fingerprint`

IMAGE = r'\d{6,}\.png'

LITTER = r'\.DS_Store|Thumbs\.db|desktop\.ini'  # from operating systems

OURS = rf'({IMAGE}|(grid|figure)\.png|(samples|points)\.npz|{RECORD})(\.tmp)?|{LITTER}'

LATER = 'device', 'precision'  # entries of a `fingerprint` that older records lack; their images count as the same


def fingerprint(config, net, edit=None):
    """Return what the images drawn with a config and a network depend on, fit for JSON. edit: what else, or None.

    device, precision: those computed with, not the flags, whose auto means another thing on another machine.
    """
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    drawn = {key: getattr(config, key) for key in drawn_keys()}
    device, precision = hardware.device(config).type, str(hardware.precision(config)).removeprefix('torch.')
    return {'weights': digest.hexdigest(), **drawn, 'device': device, 'precision': precision, 'edit': edit}


def claim(out, fingerprint):
    """Prepare the folder `out` for samples with this fingerprint; samples with another one move to `<out>.prev`.

    Raises FileExistsError, before any change, if that would move or mix with files that `claim` does not know.
    """
    before, ours, foreign = _held(out)
    before = complete({**{key: fingerprint[key] for key in LATER}, **before})
    changed = [key for key in fingerprint if before.get(key) != fingerprint[key]]
    replaced = changed and any(_is_picture(name) for name in ours)
    if in_the_way := sorted(name for name in foreign if replaced or _is_picture(name) or name == RECORD):
        raise FileExistsError(
            f'{out} holds {in_the_way[0]}, which --sample or --edit did not make: choose another --out or move it'
        )
    if replaced:
        _set_aside(out, changed)
    os.makedirs(out, exist_ok=True)
    files.write_text(os.path.join(out, RECORD), json.dumps(fingerprint))


def _is_picture(name):
    return name.endswith(('.png', '.npz'))


def _held(out):
    """Return a folder's fingerprint, {} if it has none, and the names of the files that are ours and of the others.

    Without a fingerprint, no file but `LITTER` counts as ours.
    """
    before, pattern = {}, LITTER
    with contextlib.suppress(OSError, ValueError), open(os.path.join(out, RECORD)) as file:
        found = json.load(file)
        if isinstance(found, dict) and 'weights' in found:
            before, pattern = found, OURS
    entries = list(os.scandir(out)) if os.path.isdir(out) else []
    plain = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    ours = {name for name in plain if re.fullmatch(pattern, name)}
    return before, ours, {entry.name for entry in entries} - ours


def _set_aside(out, changed):
    """Rename a folder of our samples to `<out>.prev`, and replace a folder of that name if it is ours too."""
    folder = os.path.realpath(out)
    kept = f'{folder}.prev'
    if Path.cwd().is_relative_to(folder):
        raise FileExistsError(f'{out} is the working folder and holds other samples: choose another --out')
    if os.path.lexists(kept):
        before, _, foreign = _held(kept)
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
    y = labels.of_indices(config, rows) if labels.count(config) else None
    _pack(os.path.join(out, 'samples.npz'), paths, build.shape(config), y)
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


def _pack(path, images, shape, y):
    """Save images and labels as np.savez does, but one at a time: 50,000 of 256x256 would not fit in memory.

    images: paths. shape: (C, H, W) of each. y: int64 [N] or None. Raises as `_pixels`.
    """
    channels, height, width = shape
    header = {'descr': '|u1', 'fortran_order': False, 'shape': (len(images), height, width, channels)}
    drawn = 'L' if channels == 1 else 'RGB', (width, height)
    with files.replacing(path) as temporary, zipfile.ZipFile(temporary, 'w') as archive:
        with archive.open(zipfile.ZipInfo('arr_0.npy'), 'w', force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for image in images:
                file.write(_pixels(image, drawn))
        if y is not None:
            with archive.open(zipfile.ZipInfo('arr_1.npy'), 'w') as file:
                np.lib.format.write_array(file, y.cpu().numpy())


def _pixels(path, drawn):
    """Return the bytes of an image. drawn: its mode and size. Raises DataError if it is not as it was drawn."""
    try:
        with Image.open(path) as image:
            pixels, found = image.tobytes(), (image.mode, image.size)
    except Exception as error:  # a broken PNG can make Pillow raise nearly anything
        found = error
    if found != drawn:
        raise DataError(f'{path} is not as it was drawn ({found}): remove it, and the same command draws it again')
    return pixels
