"""Every image of a folder or zip is decoded correctly or named in a one-line error, within 2 GiB of memory."""

import io
import struct
import zipfile
import zlib

import image_files
import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from runs import load, one_line

import dataset
from dataset import DataError, loader
from dataset import files as imagefiles


def encoded(pixels, format='PNG', mode=None):
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, format)
    return buffer.getvalue()


def chunk(kind, content):
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def bomb(side):
    """Make a PNG of side x side grey pixels in a few kB."""
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
    """Return stored({name: bytes}) -> the path of a folder or zip of them, all in the class `cat`."""

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
    names = 'cat/inside.png', '../outside.png', 'cat/../../outside.png', str(tmp_path / 'outside.png')
    with zipfile.ZipFile(tmp_path / 'images.zip', 'w') as archive:
        for name in names:
            archive.writestr(name, black)
    images = dataset.load(str(tmp_path / 'images.zip'), '', 8)
    assert not any('..' in name for name in images.items.names)
    assert max(image.max() for image, _ in map(images.__getitem__, range(len(images)))) == 0
    with zipfile.ZipFile(tmp_path / 'images.zip', 'a') as archive:
        link = zipfile.ZipInfo('cat/link.png')
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(tmp_path / 'outside.png'))
    with pytest.raises(DataError, match=r'cat/link\.png cannot be decoded'):
        dataset.load(str(tmp_path / 'images.zip'), '', 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['images.zip', 'outside.png']


def test_a_zip_that_unpacks_to_a_flood(tmp_path):
    with zipfile.ZipFile(tmp_path / 'images.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a.png', bytes(257 * 2**20))
    with pytest.raises(DataError, match=r'a\.png cannot be decoded \(a file of 269484032 bytes\)'):
        dataset.load(str(tmp_path / 'images.zip'), '', 8)


# --- unusual images


def files_of(folder, **images):
    """Make a folder of images, PIL's or arrays, by name. In a name, __ stands for a slash, the last _ for a dot."""
    for name, image in images.items():
        path = folder / '.'.join(name.replace('__', '/').rsplit('_', 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
    return str(folder)


RAMP = np.linspace(0, 1, 64).reshape(8, 8)
UNCLEAR = {
    'floats to 1': (RAMP.astype(np.float32), r'holds floats \(mode F\) from 0 to 1,'),
    'floats to 65535': (65535 * RAMP.astype(np.float32), r'holds floats \(mode F\) from 0 to 65535,'),
    'int32 to 255': ((255 * RAMP).astype(np.int32), r'holds integers with a sign \(mode I\) from 0 to 255,'),
    'negative': ((255 * RAMP - 100).astype(np.int32), r'holds integers with a sign \(mode I\) from -100 to 155,'),
}


@pytest.mark.parametrize('kind', UNCLEAR)
def test_values_of_no_clear_range_are_refused(tmp_path, kind):
    pixels, phrase = UNCLEAR[kind]
    path = files_of(tmp_path / 'set', cat__good_png=GREY, cat__unclear_tif=pixels)
    for read in (lambda: dataset.load(path, '', 8)[1], lambda: list(dataset.read_images(path)[1])):
        with pytest.raises(DataError, match=rf'set: cat/unclear\.tif {phrase}.* scale them to 0 \.\.\. 255') as caught:
            read()
        assert '\n' not in str(caught.value)


def test_12_bits_in_16_are_refused_and_a_dark_image_of_16_is_not(tmp_path):
    dark, light = (np.full((8, 8), value, np.uint16) for value in (4095, 40000))
    dark[0, 0] = 0
    for mode, pixels in (('grey', dark), ('colour', None)):
        path = tmp_path / mode
        path.mkdir()
        if mode == 'grey':
            Image.fromarray(dark).save(path / 'a.png')
        else:
            values = np.random.default_rng(0).integers(0, 4096, (8, 8, 3))
            (path / 'a.png').write_bytes(image_files.png(values, 16, 2, 1))
        with pytest.raises(DataError, match=r'no image of 16 bits, such as a\.png, has a value above 16383 of 65535'):
            dataset.load(str(path), '', 8)
    Image.fromarray(light).save(tmp_path / 'grey' / 'b.png')
    images = dataset.load(str(tmp_path / 'grey'), '', 8)
    assert [images[i][0].max().item() for i in range(2)] == [4095 >> 8, 40000 >> 8]


def test_a_set_of_many_images_of_one_shade_is_warned_of(tmp_path, caplog):
    noise = np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)
    many = {f'{i:02d}_png': noise for i in range(20)}
    dataset.load(files_of(tmp_path / 'few', **many, x_png=GREY), '', 8)
    assert not caplog.records
    dataset.load(files_of(tmp_path / 'many', **many, x_png=GREY, y_png=GREY, z_png=GREY), '', 8)
    assert '3 of 23 images looked at are of one shade, such as x.png, y.png, z.png' in caplog.text


@pytest.mark.parametrize('background, corner', [('white', 255), ('black', 0)])
@pytest.mark.parametrize('mode', ['RGBA', 'LA'])
def test_a_shape_in_the_alpha_is_seen_on_the_background(tmp_path, mode, background, corner):
    image = Image.new(mode, (8, 8), (0,) * len(mode))
    image.paste((128,) * (len(mode) - 1) + (255,), (2, 2, 6, 6))
    path = files_of(tmp_path / 'set', a_png=image)
    images = dataset.load(path, '', 8, background=background)
    shown = images[0][0]
    assert (shown[:, 0, 0] == corner).all() and (shown[:, 3, 3] == 128).all()
    assert f', transparency on {background}, ' in str(images)
    ((kept,),) = dataset.read_images(path, background=background)[1]
    assert torch.equal(kept, shown)


def test_auto_loses_no_colour(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)
    grey_in_rgb = np.dstack([noise] * 3)
    path = files_of(tmp_path / 'set', a_png=noise, b_png=noise, c_png=grey_in_rgb, d_png=np.dstack([noise, GREY, GREY]))
    assert dataset.load(path, '', 8).channels == 3
    monkeypatch.setattr(imagefiles, 'HEADERS', 2)  # a and c
    monkeypatch.setattr(imagefiles, 'LOOKED_AT', 1)
    (tmp_path / 'set' / 'c.png').rename(tmp_path / 'set' / 'b2.png')
    images = dataset.load(path, '', 8)  # a and b2
    assert images.channels == 3
    Image.fromarray(noise).save(tmp_path / 'set' / 'c.png')
    (tmp_path / 'set' / 'b2.png').rename(tmp_path / 'set' / 'c2.png')
    images = dataset.load(path, '', 8)  # a and c
    assert images.channels == 1 and torch.equal(images[3][0][0], torch.from_numpy(noise))
    remedy = r'd\.png is in colour, unlike those looked at first: --channels=3 keeps colour, --channels=1 drops it'
    for read in (lambda: images[4], lambda: list(dataset.read_images(path)[1])):
        with pytest.raises(DataError, match=remedy):
            read()
    assert dataset.load(path, '', 8, channels='3')[4][0].shape == (3, 8, 8)
    assert dataset.load(path, '', 8, channels='1')[4][0].shape == (1, 8, 8)


def test_several_images_in_one_file_are_refused_and_a_photo_with_a_preview_is_not(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / 'a.gif', save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r'a\.gif holds 2 images: save each in a file of its own'):
        dataset.load(str(tmp_path), '', 8)
    (tmp_path / 'a.gif').unlink()
    frames[0].save(tmp_path / 'a.jpg', 'MPO', save_all=True, append_images=frames[1:])
    assert dataset.load(str(tmp_path), '', 8)[0][0].float().mean() == pytest.approx(10, abs=2)


def test_channels_and_background_are_flags_that_a_run_keeps(tmp_path, cli):
    image = Image.new('LA', (8, 8), (0, 0))
    image.paste((128, 255), (2, 2, 6, 6))
    path = files_of(tmp_path / 'set', **{f'{i}_png': image for i in range(8)})
    flags = [
        *TINY,
        '--train',
        f'--dataset={path}',
        '--channels=3',
        '--background=black',
        f'--logdir={tmp_path / "run"}',
    ]
    status, _, error = cli(*flags)
    assert status == 0 and 'set, train: 8 images of 8x8, colour, transparency on black, no classes' in error
    config = load(tmp_path / 'run')['config']
    assert (config['channels'], config['image_channels'], config['background']) == (3, '3', 'black')
    assert {'--channels=3', '--background=black'} <= set((tmp_path / 'run' / 'flagfile.txt').read_text().split())
    status, _, error = cli(f'--flagfile={tmp_path / "run" / "flagfile.txt"}', '--train', '--total_steps=5')
    assert status == 0 and load(tmp_path / 'run')['step'] == 5
    assert cli('--sample', f'--logdir={tmp_path / "run"}', '--num_images=1')[0] == 0
    assert Image.open(tmp_path / 'run' / 'samples' / '000000.png').mode == 'RGB'
    status, _, error = cli('--sample', f'--logdir={tmp_path / "run"}', '--channels=1')
    assert status == 2 and '--channels=1 (trained with 3)' in one_line(error)
