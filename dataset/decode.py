"""Decode one image of any mode, depth, transparency and rotation to 8-bit grey or RGB."""

import numpy as np
from PIL import Image, ImageOps

# The mode that Pillow opens an image in -> the 8-bit mode that holds it. Only the low bits of 16 are lost.
MODES = {
    '1': 'L', 'L': 'L', 'I': 'L', 'I;16': 'L', 'I;16B': 'L', 'I;16L': 'L', 'I;16N': 'L', 'LA': 'LA', 'La': 'LA',
    'P': 'RGB', 'RGB': 'RGB', 'RGBX': 'RGB', 'CMYK': 'RGB', 'YCbCr': 'RGB',
    'PA': 'RGBA', 'RGBA': 'RGBA', 'RGBa': 'RGBA',
}  # fmt: skip
GREY_MODES = {mode for mode, held in MODES.items() if held in ('L', 'LA')}
KEY_SCALE = {'L;2': 85, 'L;4': 17}  # raw mode -> factor for a transparent grey, which Pillow does not scale to 8 bits
WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION, SAMPLE_FORMAT = 256, 257, 258, 262, 274, 339  # TIFF tags


class Refused(ValueError):
    """An image that can be read, but whose meaning is not clear. The message follows the name of the image."""


def bits(image):
    """Return how many bits a channel of a PIL image has in its file. The image must not be loaded yet."""
    if image.format == 'TIFF':
        return max(image.tag_v2.get(BITS, (1,)))
    if image.format == 'PPM':  # the last argument of its tile is the value of white, unless that is 255
        *_, arguments = image.tile[0]
        white = arguments[1] if isinstance(arguments, tuple) else 255
        return 16 if image.mode == 'I' or white > 255 else 8
    return 16 if image.format == 'PNG' and ';16' in _raw_mode(image) or image.mode.startswith('I;16') else 8


def shown_size(image):
    """Return the (width, height) of a PIL image, rotated as its metadata says. The image must not be loaded yet."""
    exif = Image.Image.getexif(image)  # that of PNG's own class would decode the image
    # Whether the size of a TIFF is that after the rotation depends on the version of Pillow.
    size = (image.tag_v2[WIDTH], image.tag_v2[HEIGHT]) if image.format == 'TIFF' else image.size
    return size[::-1] if exif.get(ORIENTATION) in (5, 6, 7, 8) else size


def _raw_mode(image):
    if not getattr(image, 'tile', None):  # it was not opened from a file
        return image.mode
    *_, arguments = image.tile[0]
    return arguments if isinstance(arguments, str) else arguments[0]


def eight_bits(image):
    """Rotate a PIL image as its metadata says, and convert it to mode L, LA, RGB or RGBA. Raise Refused."""
    _check(image)
    depth, tags = bits(image), image.tag_v2 if image.format == 'TIFF' else {}
    scale = KEY_SCALE.get(_raw_mode(image), 1)
    image = ImageOps.exif_transpose(image)
    key = None if image.mode in ('P', 'PA') else image.info.get('transparency')  # the transparent colour
    if key is not None:
        if depth > 8 and image.mode == 'RGB':
            raise Refused('has 16 bits and a transparent colour, but only 8 are read: save it with an alpha channel')
        key = 255 * bool(key) if image.mode == '1' else key if image.mode == 'RGB' else key * scale
        opaque = np.asarray(image.convert('L') if image.mode == '1' else image) != key
    if image.mode.startswith('I'):
        pixels = np.asarray(image) >> (depth - 8)
        white_is_zero = tags.get(PHOTOMETRIC) == 0  # Pillow heeds this only in 8 bits
        image = Image.fromarray((255 - pixels if white_is_zero else pixels).astype(np.uint8))
    keyed = image.mode == 'P' and image.has_transparency_data
    image = image.convert('RGBA' if keyed else MODES[image.mode])
    if key is not None:
        image.putalpha(Image.fromarray(np.uint8(255) * (opaque.any(2) if opaque.ndim == 3 else opaque)))
    return image


def _check(image):
    if getattr(image, 'is_animated', False) and image.format != 'MPO':  # an MPO is a photo with a preview of itself
        raise Refused(f'holds {image.n_frames} images: save each in a file of its own')
    signed = image.format == 'TIFF' and 2 in image.tag_v2.get(SAMPLE_FORMAT, ())
    if image.mode == 'F' or signed or (image.mode == 'I' and image.format not in ('PNG', 'PPM')):
        kind = 'floats' if image.mode == 'F' else 'integers with a sign' if signed else 'integers of 32 bits'
        pixels = np.asarray(image)
        pixels = pixels.view(np.int8) if pixels.dtype == np.uint8 else pixels
        raise Refused(
            f'holds {kind} (mode {image.mode}) from {pixels.min():g} to {pixels.max():g}, and does not say which '
            'values are black and white: scale them to 0 ... 255 and save it in 8 bits'
        )
    if image.mode not in MODES:
        raise Refused(f'is of mode {image.mode}: save it as RGB or grey')


def decode(image, channels, background='white', keep_colour=True):
    """Convert a PIL image to 8 bits, rotated as its metadata says, with `background` behind transparent pixels.

    channels: 1 for mode L, 3 for RGB. Raise Refused if it is not clear what the image shows, or if `keep_colour` is set
    and 1 channel would lose its colour.
    """
    image = eight_bits(image)
    if image.mode in ('LA', 'RGBA'):
        image = Image.alpha_composite(Image.new('RGBA', image.size, background), image.convert('RGBA')).convert('RGB')
    if channels == 1 and keep_colour and image.mode == 'RGB' and not _all_grey(image):
        raise Refused('is in colour, unlike those looked at first: --channels=3 keeps colour, --channels=1 drops it')
    return image.convert('L' if channels == 1 else 'RGB')


def _all_grey(image):
    pixels = np.asarray(image)
    return (pixels == pixels[:, :, :1]).all()
