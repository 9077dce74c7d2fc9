"""The masks of inpainting: which pixels of an image are drawn anew."""

from pathlib import PurePath

import torch

from dataset import open_files, read_images, sizes_text
from draw.noise import derive_seed

# --mask -> function of (height, width, given, generator) that returns the pixels to draw anew, bool [height, width].
# given: what the user wrote behind a colon, as `READERS` reads it, or None.
MASKS = {
    'half': lambda height, width, given, generator: _columns(height, width) >= width // 2,
    'box': lambda height, width, given, generator: _box(height, width, *(given or middle(height, width))),
    'lines': lambda height, width, given, generator: (_columns(width, height) % 2 == 1).T,
    'random': lambda height, width, given, generator: _scattered(height, width, given, generator),
}
# What may stand behind a colon: name -> (function of (text, height, width) that raises ValueError, forms to write)
READERS = {
    'box': (lambda text, height, width: _corners(text, height, width), ('box', 'box:LEFT,TOP,RIGHT,BOTTOM')),
    'random': (lambda text, height, width: _share(text), ('random:0.5, the share drawn anew',)),
}


def _columns(height, width):
    return torch.arange(width).expand(height, width)


def middle(height, width):
    """Return the corners (left, top, right, bottom) of the box that is half as wide and half as high as an image."""
    return width // 4, height // 4, width - width // 4, height - height // 4


def _box(height, width, left, top, right, bottom):
    across, down = _columns(height, width), _columns(width, height).T
    return (across >= left) & (across < right) & (down >= top) & (down < bottom)


def _scattered(height, width, share, generator):
    order = torch.randperm(height * width, generator=generator)
    return (order < round(share * height * width)).reshape(height, width)


def known(mask, images, n, height, width, seed):
    """Return the pixels that --mask keeps of the n images of --images, bool [n, 1, height, width].

    mask: a key of `MASKS`, which makes another mask of every image if it is random, or a path that `read_images` takes,
    of one black and white image for all or of n. White is drawn anew, as in diffusers' pipelines. Raises ValueError if
    a mask does not fit, has other shades, or leaves nothing to draw or nothing known; DataError as `read_images`.
    """
    if not mask:
        raise ValueError(f'--edit=inpaint needs --mask: {", ".join(MASKS)}, or an image whose white is drawn anew')
    name = mask.partition(':')[0]
    if name in MASKS:
        given = given_by(mask, height, width)
        anew = torch.stack([MASKS[name](height, width, given, _generator(seed, i)) for i in range(n)])[:, None]
    else:
        anew = _read(mask, images, n, height, width)
    for i, share in enumerate(anew.float().mean((1, 2, 3)).tolist()):
        if share in (0, 1):
            what = (
                'draws nothing anew: it is black' if share == 0 else 'keeps nothing: it is white (--sample draws all)'
            )
            raise ValueError(f'--mask={mask}{f", image {i} of it," if len(anew) > 1 else ""} {what}')
    return ~anew.expand(n, -1, -1, -1)


def _generator(seed, i):
    return torch.Generator().manual_seed(derive_seed('mask', seed, i))


def given_by(mask, height, width):
    """Return what stands behind the colon of a mask of `MASKS`, or None. Raises ValueError if it does not fit."""
    name, colon, text = mask.partition(':')
    read, forms = READERS.get(name, (None, (name,)))
    if not colon and name in forms:
        return None
    try:
        if text and read:
            return read(text, height, width)
    except ValueError as error:
        raise ValueError(f'--mask={mask}: {error}') from error
    raise ValueError(f'--mask={mask}: write {" or ".join(forms)}')


def _share(text):
    try:
        share = float(text)
    except ValueError:
        share = 0
    if not 0 < share < 1:
        raise ValueError('the share that is drawn anew must lie between 0 and 1')
    return share


def _corners(text, height, width):
    """Read a box as Pillow has it: its first column and row, and the column and row behind its last ones."""
    try:
        left, top, right, bottom = map(int, text.split(','))
    except ValueError:
        raise ValueError(f'write {" or ".join(READERS["box"][1])}') from None
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f'the box must have 0 <= LEFT < RIGHT <= {width} and 0 <= TOP < BOTTOM <= {height}')
    return left, top, right, bottom


def _read(mask, images, n, height, width):
    count, stream = read_images(mask)
    batches = list(stream)
    if count not in (1, n):
        raise ValueError(f'--mask={mask} holds {count} masks: give one for all {n} of --images, or one for each')
    for name, of in zip(_names(mask), _names(images), strict=False) if count > 1 else []:
        if name != of:
            raise ValueError(f'--mask={mask} has {name} for {of} of {images}: give a mask the name of its image')
    for batch in batches:
        if batch.shape[2:] != (height, width):
            found, wanted = sizes_text(tuple(batch.shape[2:])), sizes_text((height, width))
            raise ValueError(f'--mask={mask} holds a mask of {found}: the images have {wanted}')
        if (batch != batch[:, :1]).any():
            raise ValueError(f'--mask={mask} holds a mask in colour: save it as grey, white where it is drawn anew')
        if shades := ((batch != 0) & (batch != 255)).sum():
            raise ValueError(
                f'--mask={mask} has {shades} grey pixels: make them black, to keep, or white, to draw anew'
            )
    return torch.cat([batch[:, :1] for batch in batches]) == 255


def _names(path):
    """Return the names of image files without their endings, in order; none for other files, whose images have none."""
    names = [] if path.endswith('.npz') else getattr(open_files(path), 'names', [])
    return [str(PurePath(name).with_suffix('')) for name in names]
