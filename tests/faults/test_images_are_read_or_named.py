"""Every image of a folder or zip is decoded as what it shows or named in one line, within 2 GiB of memory."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
import loader
from dataset import DataError


def encoded(pixels, format='PNG', mode=None):
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, format)
    return buffer.getvalue()


def chunk(kind, content):
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def bomb(side):
    """A PNG of side x side grey pixels in a few kB."""
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0))
    return (
        b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(bytes(side * (side + 1)), 1)) + chunk(b'IEND', b'')
    )


GREY = np.full((8, 8), 128, np.uint8)
COLOUR = np.dstack([GREY, GREY // 2, GREY * 0])
NOISE = encoded(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
GOOD = {  # name -> (bytes, what they show: grey, or red, green and blue)
    'grey.png': (encoded(GREY), [128]),
    'grey with alpha.png': (encoded(GREY, mode='LA'), [128]),
    'bilevel.png': (encoded(GREY * 0, mode='1'), [0]),
    '16 bits.png': (encoded(np.full((8, 8), 128 * 257, np.uint16)), [128]),
    '16 bits.tif': (encoded(np.full((8, 8), 128 * 257, np.uint16), 'TIFF'), [128]),
    'colour.jpg': (encoded(COLOUR, 'JPEG'), [128, 64, 0]),
    'alpha.png': (encoded(COLOUR, mode='RGBA'), [128, 64, 0]),
    'palette.gif': (encoded(COLOUR, 'GIF'), [128, 64, 0]),
    'cmyk.jpg': (encoded(COLOUR, 'JPEG', 'CMYK'), [128, 64, 0]),
    'cmyk.tif': (encoded(COLOUR, 'TIFF', 'CMYK'), [128, 64, 0]),
}
BAD = {
    'corrupt.png': NOISE[:100] + b'corrupt' + NOISE[107:],
    'truncated.png': NOISE[: len(NOISE) // 2],
    'truncated.jpg': encoded(COLOUR, 'JPEG')[:-40],
    'zero bytes.png': b'',
    'text.png': b'no image',
    'huge.png': bomb(8193),
    'too huge for Pillow.png': bomb(14000),
    'of another format.png': encoded(GREY, 'PCX'),
    'program.png': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n',
}


@pytest.fixture(params=['folder', 'zip'])
def stored(request, tmp_path):
    """stored({name: bytes}) -> the path of a folder or zip of them, all in the class `cat`."""

    def store(files):
        if request.param == 'zip':
            with zipfile.ZipFile(tmp_path / 'images.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
                for name, content in files.items():
                    archive.writestr(f'cat/{name}', content)
            return str(tmp_path / 'images.zip')
        (tmp_path / 'images' / 'cat').mkdir(parents=True)
        for name, content in files.items():
            (tmp_path / 'images' / 'cat' / name).write_bytes(content)
        return str(tmp_path / 'images')

    return store


@pytest.mark.parametrize('name', GOOD)
def test_it_is_decoded_as_what_it_shows(stored, name):
    content, shown = GOOD[name]
    images = dataset.load(stored({name: content}), '', 8)
    assert images.channels == len(shown)
    torch.testing.assert_close(images[0][0].float().mean(dim=(1, 2)), torch.tensor(shown).float(), atol=3, rtol=0)


@pytest.mark.parametrize('resident_bytes, workers', [(2**30, 0), (0, 2)], ids=['resident', 'streamed'])
@pytest.mark.parametrize('name', BAD)
def test_it_is_named(stored, monkeypatch, name, resident_bytes, workers):
    monkeypatch.setattr(loader, 'RESIDENT_BYTES', resident_bytes)
    path = stored({**{f'{i}.png': NOISE for i in range(5)}, name: BAD[name]})
    with pytest.raises(DataError) as caught:
        stream = loader.batches(dataset.load(path, '', 8), 2, 0, 0, torch.device('cpu'), False, workers)
        for _ in range(6):
            next(stream)
    assert f'cat/{name} cannot be decoded' in str(caught.value) and '\n' not in str(caught.value)


def test_nothing_is_read_from_outside_the_zip(tmp_path):
    (tmp_path / 'outside.png').write_bytes(encoded(GREY))
    black = encoded(GREY * 0)
    with zipfile.ZipFile(tmp_path / 'images.zip', 'w') as archive:
        for i in range(99):  # so that the link is not among those looked at for colour
            archive.writestr(f'cat/{i:02d}.png', black)
        for name in ('../outside.png', 'cat/../../outside.png', str(tmp_path / 'outside.png')):
            archive.writestr(name, black)
        link = zipfile.ZipInfo('cat/link.png')
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(tmp_path / 'outside.png'))
    images = dataset.load(str(tmp_path / 'images.zip'), '', 8)
    assert not any('..' in name for name in images.items.names)
    shown = [images[i][0].max() for i, name in enumerate(images.items.names) if 'link' not in name]
    assert len(shown) == 100 and max(shown) == 0
    with pytest.raises(DataError, match=r'cat/link\.png cannot be decoded'):
        images[images.items.names.index('cat/link.png')]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['images.zip', 'outside.png']


def test_a_zip_that_unpacks_to_a_flood(tmp_path):
    with zipfile.ZipFile(tmp_path / 'images.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a.png', bytes(257 * 2**20))
    with pytest.raises(DataError, match=r'a\.png cannot be decoded \(a file of 269484032 bytes\)'):
        dataset.load(str(tmp_path / 'images.zip'), '', 8)
