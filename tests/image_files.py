"""Write image files by hand, bit by bit, and compute what they show, independently of any decoder.

Each kind in KINDS takes a random generator and a size, and makes the bytes of a file and a `Shown`, or None if the
image must be refused.
"""

import io
import struct
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image


class Shown(NamedTuple):
    rgb: np.ndarray  # [H, W, 3], 0 ... 255, not rounded
    alpha: np.ndarray | None = None  # [H, W], 0 ... 1
    grey: bool = False  # stored without colour
    deep: bool = False  # 16 bits a value
    tolerance: float = 1.01  # in 8-bit values, since 16 bits are cut to 8


def exif(orientation):
    """Return EXIF data that says how to turn an image: a TIFF of one entry."""
    return b'II*\0' + struct.pack('<IHHHIII', 8, 1, 274, 3, 1, orientation, 0)


def turned(pixels, orientation):
    """Return pixels [H, W, ...] as a viewer shows them under one of EXIF's eight orientations."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[
        orientation
    ]
    return pixels[::rows, ::columns]


def packed(values, bits):
    """Return rows of values [H, N] as bytes, the highest bit first."""
    if bits == 16:
        return [row.astype('>u2').tobytes() for row in values]
    digits = (values[:, :, None] >> np.arange(bits)[::-1]) & 1  # [H, N, bits]
    return [np.packbits(row.ravel()).tobytes() for row in digits]


def png(values, bits, kind, orientation, *chunks):
    """values: [H, W, bands]. kind: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA. chunks: (name, content)."""

    def chunk(name, content):
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    height, width, _ = values.shape
    rows = b''.join(b'\0' + row for row in packed(values.reshape(height, -1), bits))
    header = struct.pack('>IIBBBBB', width, height, bits, kind, 0, 0, 0)
    parts = [(b'IHDR', header), *chunks, (b'eXIf', exif(orientation)), (b'IDAT', zlib.compress(rows)), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts)


def tiff(values, bits, photometric, orientation, order='<', sample_format=1, extra=()):
    """Return a TIFF. values: [H, W, bands], of a dtype with `bits`. extra: what the bands after the colour are."""
    height, width, bands = values.shape
    content = values.astype(values.dtype.newbyteorder(order)).tobytes()
    many = {258: [bits] * bands, 339: [sample_format] * bands, 338: list(extra)}
    entries = {256: width, 257: height, 259: 1, 262: photometric, 273: 8, 274: orientation, 277: bands, 278: height}
    entries |= {279: len(content)} | {tag: numbers for tag, numbers in many.items() if numbers}
    out, later = b'', b''
    at = 8 + len(content) + 2 + 12 * len(entries) + 4
    for tag, value in sorted(entries.items()):
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) <= 2 and isinstance(value, list):
            out += struct.pack(f'{order}HHI', tag, 3, len(numbers))
            out += struct.pack(f'{order}{len(numbers)}H', *numbers).ljust(4, b'\0')
        elif isinstance(value, list):
            out += struct.pack(f'{order}HHII', tag, 3, len(numbers), at + len(later))
            later += struct.pack(f'{order}{len(numbers)}H', *numbers)
        else:
            out += struct.pack(f'{order}HHII', tag, 4, 1, value)
    start = struct.pack(f'{order}2sHI', {'<': b'II', '>': b'MM'}[order], 42, 8 + len(content))
    return start + content + struct.pack(f'{order}H', len(entries)) + out + b'\0' * 4 + later


def _values(rng, size, bands, bits):
    """Return values [H, W, bands]: noise, dark noise or one shade."""
    top = rng.choice([2**bits, max(2, 2 ** (bits - 4)), 2])
    values = rng.integers(0, top, (size[1], size[0], bands))
    return values if rng.random() < 0.9 else np.broadcast_to(values[:1, :1], values.shape).copy()


def _png_of(kind):
    def make(rng, size, orientation):
        bits = int(rng.choice({0: [1, 2, 4, 8, 16], 3: [1, 2, 4, 8]}.get(kind, [8, 16])))
        bands = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
        values, deep = _values(rng, size, bands, bits), bits == 16
        alpha, chunks = None, []
        if kind == 3:
            palette = rng.integers(0, 256, (2**bits, 3), dtype=np.uint8)
            chunks = [(b'PLTE', palette.tobytes())]
            if rng.random() < 0.5:
                opacity = rng.choice([0, 255, 100], rng.integers(1, 2**bits + 1)).astype(np.uint8)
                chunks += [(b'tRNS', opacity.tobytes())]
                alpha = np.pad(opacity, (0, 2**bits - len(opacity)), constant_values=255)[values[..., 0]] / 255
            rgb = palette[values[..., 0]]
        else:
            colour = values[..., : 3 if kind in (2, 6) else 1]
            if kind in (4, 6):
                alpha = values[..., -1] / (2**bits - 1)
            elif rng.random() < 0.3:
                key = colour[0, 0]
                chunks = [(b'tRNS', key.astype('>u2').tobytes())]
                alpha = (colour != key).any(2).astype(float)
            rgb = colour * 255 / (2**bits - 1)
            if deep and kind == 2 and chunks:
                return png(values, bits, kind, orientation, *chunks), None
        rgb = np.broadcast_to(rgb, (*values.shape[:2], 3))
        grey = kind in (0, 4) and not (kind == 4 and deep)  # Pillow opens that as RGBA
        return png(values, bits, kind, orientation, *chunks), Shown(rgb, alpha, grey, deep)

    return make


def _tiff_of(dtype, photometric, bands, extra=(), sample_format=1):
    def make(rng, size, orientation):
        bits = np.dtype(dtype).itemsize * 8
        order = '<' if photometric == 0 and bits == 16 else str(rng.choice(['<', '>']))
        if bits == 32 and sample_format == 1:
            order = '<'  # Pillow does not know the other one
        values = _values(rng, size, bands, min(bits, 16)).astype(dtype)
        content = tiff(values, bits, photometric, orientation, order, sample_format, extra)
        if sample_format != 1 or bits == 32:
            return content, None
        white = 2**bits - 1
        alpha = values[..., -1] / white if extra else None
        if photometric == 5:
            rgb = (white - values[..., :3].astype(float)) * (white - values[..., 3:].astype(float)) / white
        else:
            rgb = values[..., : 3 if photometric == 2 else 1]
        rgb = 255 / white * (white - rgb if photometric == 0 else rgb)
        shown = np.broadcast_to(rgb, (*values.shape[:2], 3))
        return content, Shown(shown, alpha, photometric < 2, bits == 16, 2.01 if photometric == 5 else 1.01)

    return make


def _pnm(letter):
    def make(rng, size, orientation):
        white = int(rng.choice([1, 100, 255, 1023, 4095, 65535]))
        bands = 3 if letter == b'P6' else 1
        values = rng.integers(0, white + 1, (size[1], size[0], bands))
        header = b'%s\n%d %d\n%d\n' % (letter, *size, white)
        rgb = np.broadcast_to(values * 255 / white, (size[1], size[0], 3))
        grey = bands == 1
        return header + values.astype('>u2' if white > 255 else np.uint8).tobytes(), Shown(rgb, None, grey, white > 255)

    return make


def _by_pillow(format, mode, tolerance=1.01, **options):
    """Make a kind that is too long to write by hand: Pillow writes it, without loss unless it has only one shade."""

    def make(rng, size, orientation):
        values = _values(rng, size, len(mode), 8).astype(np.uint8)
        if tolerance > 2:
            values[:] = values[:1, :1]
        turn = {'exif': b'Exif\0\0' + exif(orientation)} if format in ('JPEG', 'WEBP') else {}
        content = io.BytesIO()
        Image.fromarray(values.squeeze(2) if mode == 'L' else values, mode).save(content, format, **turn, **options)
        rgb = np.broadcast_to(values[..., :3] if len(mode) > 1 else values, (*values.shape[:2], 3))
        alpha = values[..., 3] / 255 if mode == 'RGBA' else None
        return content.getvalue(), Shown(rgb, alpha, mode == 'L' and format != 'WEBP', False, tolerance)

    return make


def _gif(rng, size, orientation):
    values = rng.integers(0, 8, size[::-1], dtype=np.uint8)
    palette = rng.integers(0, 256, (8, 3), dtype=np.uint8)
    image = Image.fromarray(values, 'P')
    image.putpalette(palette.tobytes())
    key = {'transparency': 3} if rng.random() < 0.5 else {}
    content = io.BytesIO()
    image.save(content, 'GIF', optimize=False, **key)
    return content.getvalue(), Shown(palette[values], (values != 3).astype(float) if key else None)


def _frames(format):
    def make(rng, size, orientation):
        frames = [Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(2)]
        content = io.BytesIO()
        frames[0].save(content, format, save_all=True, append_images=frames[1:])
        return content.getvalue(), None

    return make


KINDS = {  # name, with the ending of the file -> function that makes one, whether metadata may turn it
    'grey.png': (_png_of(0), True),
    'colour.png': (_png_of(2), True),
    'palette.png': (_png_of(3), True),
    'grey and alpha.png': (_png_of(4), True),
    'colour and alpha.png': (_png_of(6), True),
    'two frames.png': (_frames('PNG'), False),
    'grey.tif': (_tiff_of('u1', 1, 1), True),
    'white is 0.tif': (_tiff_of('u1', 0, 1), True),
    'grey 16.tiff': (_tiff_of('u2', 1, 1), True),
    'white is 0, 16.tif': (_tiff_of('u2', 0, 1), True),
    'colour.TIF': (_tiff_of('u1', 2, 3), True),
    'colour 16.tif': (_tiff_of('u2', 2, 3), True),
    'grey and alpha.tif': (_tiff_of('u1', 1, 2, [2]), True),
    'colour and alpha.tif': (_tiff_of('u1', 2, 4, [2]), True),
    'colour and alpha 16.tif': (_tiff_of('u2', 2, 4, [2]), True),
    'cmyk.tif': (_tiff_of('u1', 5, 4), True),
    'signed.tif': (_tiff_of('i1', 1, 1, sample_format=2), True),
    'signed 16.tif': (_tiff_of('i2', 1, 1, sample_format=2), True),
    'signed 32.tif': (_tiff_of('i4', 1, 1, sample_format=2), True),
    'integers of 32.tif': (_tiff_of('u4', 1, 1), True),
    'floats.tif': (_tiff_of('f4', 1, 1, sample_format=3), True),
    'pages.tif': (_frames('TIFF'), False),
    'grey.pgm': (_pnm(b'P5'), False),
    'colour.ppm': (_pnm(b'P6'), False),
    'grey.bmp': (_by_pillow('BMP', 'L'), False),
    'colour.bmp': (_by_pillow('BMP', 'RGB'), False),
    'grey.jpg': (_by_pillow('JPEG', 'L', 4), True),
    'colour.JPEG': (_by_pillow('JPEG', 'RGB', 4), True),
    'colour.webp': (_by_pillow('WEBP', 'RGB', lossless=True, exact=True), True),
    'colour and alpha.webp': (_by_pillow('WEBP', 'RGBA', lossless=True, exact=True), True),
    'palette.gif': (_gif, False),
    'two frames.gif': (_frames('GIF'), False),
    'two frames.webp': (_frames('WEBP'), False),
}


def zip_of(folder, path):
    """Zip the files of a folder, at `path`."""
    with zipfile.ZipFile(path, 'w') as archive:
        for file in sorted(folder.rglob('*.*')):
            archive.write(file, file.relative_to(folder))
    return path
