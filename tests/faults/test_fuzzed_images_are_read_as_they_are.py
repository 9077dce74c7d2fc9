"""Random sets of images of every kind are decoded as an independent reading says, or refused naming a file.

FUZZ=10000 tries that many sets, different ones every time, in place of 200.
"""

import logging
import os
import re
import unicodedata
import warnings
import zipfile
from functools import cmp_to_key

import numpy as np
import pytest
from image_files import KINDS, turned

import dataset
from dataset import DataError
from dataset import files as imagefiles

TIMES = int(os.environ.get('FUZZ', 0))
UNCLEAR = 'two frames', 'pages', 'signed', 'integers', 'floats'  # prefixes of kinds that are always refused
LETTERS = [*'aBz019_-', ' ', '10', 'ä', '日']


def expected(shown, orientation, channels, background):
    """Return the pixels [H, W, channels] of a `Shown`, not rounded."""
    rgb = shown.rgb.astype(float)
    if shown.alpha is not None:
        alpha = shown.alpha[:, :, None]
        rgb = rgb * alpha + {'white': 255, 'black': 0}[background] * (1 - alpha)
    rgb = turned(rgb, orientation)
    return rgb if channels == 3 else rgb @ np.array([[0.299], [0.587], [0.114]])


def before(a, b):
    """Compare two names word by word, with digits read as numbers: negative if a comes first."""
    words = [re.findall('[0-9]+|[^0-9]+', name) for name in (a, b)]
    for x, y in zip(*words, strict=False):
        if x.isdecimal() != y.isdecimal():  # a number against letters
            return -1 if ('' if x.isdecimal() else x) < ('' if y.isdecimal() else y) else 1
        x, y = (int(x), int(y)) if x.isdecimal() else (x, y)
        if x != y:
            return -1 if x < y else 1
    return len(words[0]) - len(words[1]) or (-1 if a < b else int(a > b))


def random_set(rng, folder):
    """Make a folder or zip of one to four images: (path, {name: (class, content, shown, orientation)})."""
    side, files = int(rng.integers(1, 9)), {}
    names = [''.join(rng.choice(LETTERS, rng.integers(1, 5))).strip() or '7' for _ in range(3)]
    kinds = [kind for kind in KINDS if rng.random() < 0.03 or not kind.startswith(UNCLEAR)]
    for i in range(rng.integers(1, 5)):
        kind = rng.choice(kinds)
        make, turns = KINDS[kind]
        orientation = int(rng.integers(1, 9)) if turns else 1
        size = (side, side) if rng.random() < 0.7 else (side, int(rng.integers(1, 9)))
        top = str(rng.choice(names))
        files[f'{top}/{i} {kind}'] = top, *make(rng, size, orientation), orientation
    if rng.random() < 0.5:
        separator = str(rng.choice(['/', '\\']))
        path, files = folder / 'set.zip', {name.replace('/', separator): file for name, file in files.items()}
        with zipfile.ZipFile(path, 'w') as archive:
            for name, (_, content, *_) in files.items():
                archive.writestr(name, content)
        return path, files
    for name, (_, content, *_) in files.items():
        (folder / 'set' / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / 'set' / name).write_bytes(content)
    return folder / 'set', files


def colour(shown, background):
    """Return the largest difference between red, green and blue."""
    return np.ptp(expected(shown, 1, 3, background), axis=2).max()


def is_borderline(shown, background, auto):
    """Return whether rounding decides if 16 bits are too dark or, with channels=auto, if an image is in colour."""
    rounded = shown.deep or shown.alpha is not None or shown.tolerance > 2
    faint = rounded and 0 < colour(shown, background) < 2 * shown.tolerance + 1
    return (auto and faint) or (shown.deep and 63 < shown.rgb.max() < 65)


def refusals(files, asked, background, headers):
    """Return (names that an error may give, number of channels that the other images are read in)."""
    names = sorted(files)
    seen = [names[len(names) * k // headers] for k in range(headers)] if len(names) > headers else names
    shown = {name: shown for name, (_, _, shown, _) in files.items()}
    refused = {name for name in names if shown[name] is None}
    deep = [name for name in seen if shown[name] is not None and shown[name].deep]
    if deep and all(shown[name].rgb.max() < 64 for name in deep):
        refused.add(deep[0])
    if asked != 'auto':
        return refused, asked
    if any(shown[name] is not None and not shown[name].grey for name in seen):
        return refused, 3
    coloured = {
        name
        for name in set(names) - set(seen)
        if shown[name] is not None and not shown[name].grey and colour(shown[name], background) > 0
    }
    return refused | coloured, 1


def check(rng, folder, monkeypatch):
    """Test one set, and return what happened to it."""
    path, files = random_set(rng, folder)
    asked, background = rng.choice(['auto', '1', '3']), str(rng.choice(['white', 'black']))
    asked = 'auto' if asked == 'auto' else int(asked)
    if any(shown and is_borderline(shown, background, asked == 'auto') for _, _, shown, _ in files.values()):
        return 'left out'
    headers = int(rng.choice([1, 4096]))
    monkeypatch.setattr(imagefiles, 'HEADERS', headers)
    refused, channels = refusals(files, asked, background, headers)
    side = max(max(shown.rgb.shape) for _, _, shown, _ in files.values() if shown) if len(refused) < len(files) else 1
    try:
        images = dataset.load(str(path), '', side, 'train', str(asked), background)
        decoded = [images[i] for i in range(len(images))]
        n, batches = dataset.read_images(str(path), str(asked), background)
        kept = [image.permute(1, 2, 0).numpy() for batch in batches for image in batch]
    except DataError as error:
        assert any(str(path) in str(error) and name in str(error) for name in refused), (str(error), files.keys())
        assert '\n' not in str(error)
        return 'refused'
    assert not refused, refused
    assert n == len(kept) == len(images) == len(files)
    classes = sorted({unicodedata.normalize('NFC', top) for top, *_ in files.values()}, key=cmp_to_key(before))
    assert images.classes == classes and images.channels == channels
    for name, (image, label), pixels in zip(sorted(files), decoded, kept, strict=True):
        top, _, shown, orientation = files[name]
        assert classes[label] == top
        truth = expected(shown, orientation, channels, background)
        # Alpha is cut to 8 bits too and its result rounded; so is the result of a conversion to grey.
        tolerance = shown.tolerance + 1.5 * (shown.alpha is not None) + 0.5 * (channels == 1)
        assert pixels.shape == truth.shape and abs(pixels - truth).max() <= tolerance, (name, path)
        if truth.shape[:2] == (side, side):
            assert (image.permute(1, 2, 0).numpy() == pixels).all(), name
    return 'read'


def test_random_sets(tmp_path, monkeypatch):
    warnings.simplefilter('ignore')
    logging.disable()
    seed = int.from_bytes(os.urandom(6), 'big') if TIMES else 0
    counts = {'read': 0, 'refused': 0, 'left out': 0}
    try:
        for i in range(TIMES or 200):
            folder = tmp_path / str(i)
            folder.mkdir()
            try:
                counts[check(np.random.default_rng([seed, i]), folder, monkeypatch)] += 1
            except Exception as error:
                pytest.fail(f'set {i} of seed {seed}, kept in {folder}: {error!r}')
    finally:
        logging.disable(logging.NOTSET)
    print(counts)
    assert min(counts['read'], counts['refused']) > 0 and counts['left out'] < 0.2 * sum(counts.values())
