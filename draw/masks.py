"""The masks of inpainting: which pixels of an image are drawn anew."""

from pathlib import PurePath

import torch

from dataset import open_files, read_images, sizes_text
from draw.noise import derive_seed

# --mask -> function of (height, width, share, generator) that returns the pixels to draw anew, bool [height, width].
# share: what the user wrote behind a colon, a float in (0, 1), or None.
MASKS = {
    'half': lambda height, width, share, generator: _columns(height, width) >= width // 2,
    'box': lambda height, width, share, generator: _middle(height)[:, None] & _middle(width),
    'lines': lambda height, width, share, generator: (_columns(width, height) % 2 == 1).T,
    'random': lambda height, width, share, generator: _scattered(height, width, share, generator),
}
TAKES_SHARE = ('random',)


def _columns(height, width):
    return torch.arange(width).expand(height, width)


def _middle(length):
    return (torch.arange(length) >= length // 4) & (torch.arange(length) < length - length // 4)


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
    name, colon, share = mask.partition(':')
    if name in MASKS:
        share = _share(mask, name, share if colon else None)
        anew = torch.stack([MASKS[name](height, width, share, _generator(seed, i)) for i in range(n)])[:, None]
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


def _share(mask, name, text):
    if (text is not None) != (name in TAKES_SHARE):
        raise ValueError(f'--mask={mask}: write {name}{":0.5, the share drawn anew" * (name in TAKES_SHARE)}')
    try:
        share = None if text is None else float(text)
    except ValueError:
        share = 0
    if share is not None and not 0 < share < 1:
        raise ValueError(f'--mask={mask}: the share that is drawn anew must lie between 0 and 1')
    return share


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
