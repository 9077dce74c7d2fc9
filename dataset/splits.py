"""Tell the splits of a data set by the names of its files."""

import logging
import re

from dataset.files import DataError, natural

# train/0000.parquet, data/train-00000-of-00002.parquet, test_01.parquet: a folder, or the beginning of a file's name
WORDS = {'train': 'train|training', 'validation': 'validation|valid|val|dev', 'test': 'test|testing'}
NAME = r'(?:(?P<set>.*?)/)?(?P<part>partial-)?(?:{})(?:/.*|(?:[-_.]\d+(?:-of-(?P<count>\d+))?(?:-\w+)?)?\.parquet)'
PATTERNS = {split: re.compile(NAME.format(words), re.IGNORECASE) for split, words in WORDS.items()}
OTHER = 'other'  # the split of files whose names tell none


def splits_by_name(path, names):
    """Return {split: names} of parquet files, or {'other': names} if no name tells a split.

    These are the layouts of the Hugging Face Hub: SET/SPLIT/0000.parquet, and files SPLIT-00000-of-00003.parquet. A
    split that lacks some of its files is warned of. Raise DataError if there are several sets.
    """
    splits, sets = {}, set()
    for name in sorted(names, key=natural):
        found = {split: match for split, pattern in PATTERNS.items() if (match := pattern.fullmatch(name))}
        split, match = min(found.items(), key=lambda each: len(each[1]['set'] or ''), default=(OTHER, None))
        splits.setdefault(split, []).append((name, match))
        sets |= {match['set']} if match else set()
    if len(sets) > 1:
        shown = ' '.join(sorted(each or '.' for each in sets))
        raise DataError(f'{path} holds {len(sets)} data sets: name one of its folders {shown}')
    for split, files in splits.items():
        counts = {int(match['count']) for _, match in files if match and match['count']}
        if any(match and match['part'] for _, match in files):
            logging.warning('%s: the files of the split %s are only the first part of it, by their names', path, split)
        elif counts and max(counts) != len(files):
            text = '%s: %d of the %d files of the split %s are there, by their names'
            logging.warning(text, path, len(files), max(counts), split)
    return {split: [name for name, _ in files] for split, files in splits.items()}


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
