"""Tell the splits of a data set by the names of its files and folders."""

import logging
import re

from dataset.files import DataError, natural

# train/0000.parquet, data/train-00000-of-00002.parquet, test_01.parquet: a folder, or the beginning of a file's name
WORDS = {'train': 'train|training', 'validation': 'validation|valid|val|dev', 'test': 'test|testing'}
NAME = r'(?:(?P<set>.*?)/)?(?P<part>partial-)?(?:{})(?:/.*|(?:[-_.]\d+(?:-of-(?P<count>\d+))?(?:-\w+)?)?\.parquet)'
PATTERNS = {split: re.compile(NAME.format(words), re.IGNORECASE) for split, words in WORDS.items()}
WITHIN = {split: re.compile(f'(?<![a-z])({words})(?![a-z])', re.IGNORECASE) for split, words in WORDS.items()}
OTHER = 'other'  # the split of files whose names tell none


def splits_by_name(path, names):
    """Return {split: names} of parquet files, or {'other': names} if no name tells a split.

    These are the layouts of the Hugging Face Hub: SET/SPLIT/0000.parquet, and files SPLIT-00000-of-00003.parquet. Raise
    DataError as `check_one_set`, and if no name has such a layout, but several have the words of different splits.
    """
    check_one_set(path, names)
    splits = {}
    for name in sorted(names, key=natural):
        splits.setdefault(_told(name)[0], []).append(name)
    hints = {tuple(split for split, word in WITHIN.items() if word.search(name)) for name in names} - {()}
    if list(splits) == [OTHER] and len(hints) > 1:
        shown = ' and '.join(' '.join(hint) for hint in sorted(hints))
        raise DataError(
            f'{path} seems to hold the splits {shown}: name one file, or put each into a folder of its name'
        )
    return splits


def check_classes(path, classes):
    """Raise DataError if the folders that are the classes of images are all named as splits, such as train and test."""
    if len(classes) > 1 and all(any(word.fullmatch(name) for word in WITHIN.values()) for name in classes):
        raise DataError(
            f'{path} holds the folders {" ".join(classes)}, which are splits and no classes: name one of them (unpack '
            'a zip first), and the test split by --test_dataset'
        )


def check_one_set(path, names):
    """Raise DataError if the names of parquet files tell of several data sets, each with splits of its own."""
    sets = {match['set'] for _, match in map(_told, names) if match}
    if len(sets) > 1:
        shown = ' '.join(sorted(each or '.' for each in sets))
        raise DataError(f'{path} holds {len(sets)} data sets: name one of its folders {shown}')


def warn_of_missing(path, names):
    """Warn if the names of the files of a split tell that there are more."""
    told = [match for _, match in map(_told, names) if match]
    count = max((int(match['count']) for match in told if match['count']), default=len(names))
    if any(match['part'] for match in told):
        logging.warning('%s: by the names of its files, %s is only the first part', path, names[0])
    elif count != len(names) > 1:
        logging.warning('%s: by the names of its files, there are %d of %d', path, len(names), count)


def _told(name):
    """Return the split that a name tells, and the match of its pattern; OTHER and None if it tells none."""
    found = {split: match for split, pattern in PATTERNS.items() if (match := pattern.fullmatch(name))}
    return min(found.items(), key=lambda each: len(each[1]['set'] or ''), default=(OTHER, None))


def chosen(path, splits, split):
    """Return the key in `splits` that is meant by a split, or by None, and what to say of it.

    If there is only one, it is meant. Raise DataError if there are several and none is that one.
    """
    if len(splits) == 1:
        (only,) = splits
        return only, '' if only in ('', OTHER, split) else f', the split {only}'
    if split not in splits:
        raise DataError(f'{path} has the splits {" ".join(splits)}{f", not {split}" if split else ""}: name one alone')
    return split, f', of the splits {" ".join(splits)}'
