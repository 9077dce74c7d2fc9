"""Compares what a cache was made from with what is asked for.

A source is a dict, as JSON can keep it, in which whoever has the images describes them.
"""

import json

from .files import ScoreError


class StaleError(ScoreError):
    """A cache that was made from something else than is asked for; `why` says what, such as 'made from /a, not /b'."""

    def __init__(self, path, why):
        super().__init__(f'{path}: {why}; ask for that, or build it anew')
        self.why = why


def check_source(path, made, asked):
    """Raises StaleError if the source of the cache at `path`, `made`, differs from the source `asked` for.

    If one of them is None, they are not compared. Nor are the keys that `asked` lacks.
    """
    if made is not None and asked is not None and (words := _differences(made, asked)):
        raise StaleError(path, f'made {words}')


def from_text(text):
    """Reads a source from JSON. Raises ValueError if the text is no JSON object."""
    source = json.loads(text)
    if not isinstance(source, dict):
        raise ValueError(f'its source is no dict but {text[:40]}')
    return source


def _differences(made, asked):
    wrong = [key for key in asked if made.get(key) != asked[key]]
    if 'from' in wrong:  # then all else differs too
        wrong = ['from']
    elif len(wrong) > 1 and 'files' in wrong:  # other keys describe the difference better
        wrong.remove('files')
    return ' and '.join(_words(key, made.get(key), asked[key]) for key in wrong)


def _words(key, made, asked):
    if key == 'test' and isinstance(made, dict) and isinstance(asked, dict):
        return f'with test images {_differences(made, asked)}'
    words = {
        'test': 'with other test images',
        'from': f'from {made}, not {asked}',
        'count': f'from {made} files, not {asked}',
        'files': 'from files that have changed since',
    }
    return words.get(key, f'with {key} {str(made)[:80]}, not {str(asked)[:80]}')
