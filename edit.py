"""Edit images by a checkpoint: complete, vary, enlarge or colour them, by a diffusion that was not trained for it."""

import hashlib
import logging
import os
from collections import ChainMap

import torch
from torch.nn import functional as F

import dataset
from draw import folder, masks, picture, walk
from process.operators import OPERATORS
from run import build, labels
from run.config import keys
from run.errors import UsageError, usage
from run.restore import run_folder

EDITS = ChainMap({'vary': None}, OPERATORS)  # --edit -> how `OPERATORS` makes its operator, or None for whole images
SHOWN = 16  # the most sources in the grid


def edit(config, net, interrupted=lambda: False):
    """Make --variants of each of --images in --out, by default edits/ beside the checkpoint.

    inpaint, upscale and colorize keep what is known of an image, y = A x_0, by `Operator.projection`, and take each
    --jump steps --resample times. vary noises an image by --strength of all T noisings and denoises it (SDEdit: Meng et
    al. 2022). Writes 000000.png..., the variants of the first source first; samples.npz, as --sample writes it; and
    grid.png, the variants beside their sources. Images already made by the same command are kept.

    config, net: from `restore`. Raises UsageError if flags, images and masks do not go together, before anything is
    made; DataError if images cannot be read; FileExistsError if --out holds anything else.
    """
    sources, planned = _plan(config)
    out = config.out or os.path.join(run_folder(config), 'edits')
    known = planned.sources
    if planned.operator:
        known = planned.operator(slice(None)).inverse(known)
    digest = hashlib.sha256(sources.numpy().tobytes() + known.numpy().tobytes()).hexdigest()
    flags = {key: getattr(config, key) for key in keys('edit')}
    of = {'kind': config.edit, 'images': digest, **flags}

    def grid(paths):
        return _table(config, sources, known, paths)

    folder.fill(config, net, out, len(sources) * config.variants, grid, interrupted, planned, of)


def _plan(config):
    """Return --images, uint8 [N, C, H, W], and the `Edit` that is asked for. Raises as `edit`."""
    if build.is_points(config):
        raise UsageError(f'--edit={config.edit} is of images: the checkpoint draws points')
    if not config.images:
        raise UsageError(f'--edit={config.edit} needs --images, the images to edit')
    with usage():
        kind, shape = EDITS[config.edit], build.shape(config)
        if config.mask and not (kind and kind.takes_mask):
            raise ValueError(f'--mask is for inpaint: --edit={config.edit} changes the whole image, so leave it out')
        if kind is None:
            if not config.strength:
                raise ValueError('--strength=0 changes nothing: it must be above 0, and 1 at most')
            sources = _read(config, shape)
            return sources, plan(config, sources)
        whole = torch.zeros(1, *shape)
        sources = _read(config, kind.make(torch.ones_like(whole[:, :1]), config.factor).forward(whole).shape[1:])
        return sources, plan(config, sources, _known(config, sources) if kind.takes_mask else None)


def plan(config, sources, known=None):
    """Return the `Edit` of --edit for these sources, uint8 [N, C, H, W]. known: what --mask keeps, bool [N, 1, H, W].

    Raises ValueError if nothing says what the images show.
    """
    if labels.count(config) and config.labels == 'all':
        raise ValueError('say with --labels what the images show, one label for all or one each, or --guidance=0')
    kind, x = EDITS[config.edit], sources.float() / 127.5 - 1
    if kind is None:
        return walk.Edit(x, config.variants, max(1, round(config.strength * config.T)))

    def operator(rows):
        return kind.make(None if known is None else known[rows], config.factor)

    return walk.Edit(x, config.variants, operator=operator)


def _read(config, shape):
    """Return --images, uint8 [N, C, H, W], each of which must have this shape (C, H, W)."""
    channels = 'auto' if config.image_channels == 'auto' else str(shape[0])
    _, stream = dataset.read_images(config.images, channels, config.background)
    batches = list(stream)
    for batch in batches:
        if batch.shape[1] != shape[0]:
            found, wanted = ('grey' if n == 1 else 'in colour' for n in (batch.shape[1], shape[0]))
            raise ValueError(
                f'--edit={config.edit} takes images {wanted} here, and those of {config.images} are {found}: '
                f'--channels={config.channels} takes files as {wanted}'
            )
        if batch.shape[2:] != shape[1:]:
            found, wanted = (dataset.sizes_text(tuple(size)) for size in (batch.shape[2:], shape[1:]))
            raise ValueError(
                f'--edit={config.edit} takes images of {wanted} here, and {config.images} has one of {found}: resize it'
            )
    return torch.cat(batches)


def _known(config, sources):
    """Return the pixels of the sources that --mask keeps, bool [N, 1, H, W]."""
    known = masks.known(config.mask, config.images, *sources[:, 0].shape, config.seed)
    anew = 100 * (1 - known.float().mean().item())
    logging.info('--mask=%s: %.1f%% of the pixels are drawn anew, the others are kept', config.mask, anew)
    return known


def _table(config, sources, known, paths):
    """Draw up to SHOWN sources, what is known of each if that is less, and their variants, one source per row."""
    n, (_, channels, height, width) = min(SHOWN, len(sources)), known.shape
    columns = {'source': F.interpolate(sources[:n].float() / 127.5 - 1, (height, width)).expand(-1, channels, -1, -1)}
    if EDITS[config.edit] and EDITS[config.edit].takes_mask:
        columns['known'] = known[:n]
    for v in range(config.variants):
        columns[str(v + 1)] = folder.read(paths[v : n * config.variants : config.variants]).float() / 127.5 - 1
    return picture.table(torch.stack([*columns.values()], dim=1), [*columns])
