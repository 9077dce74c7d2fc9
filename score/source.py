"""What a cache was made from: a dict, as JSON can keep it, by which whoever has the images describes them."""

import json

from .files import ScoreError


class StaleError(ScoreError):
    """A cache that was made of something else than is asked for; `why` says what, such as 'made from /a, not /b'."""

    def __init__(self, path, why):
        super().__init__(f'{path}: {why}; ask for that, or build it anew')
        self.why = why


def check_source(path, made, asked):
    """StaleError if the cache at `path`, made from images described by `made`, is not of those described by `asked`.

    A cache that does not say (None) is taken as it is. Of `made`, keys that `asked` lacks are not compared.
    """
    if made is not None and asked is not None and (words := _differences(made, asked)):
        raise StaleError(path, f'made {words}')


def to_text(source):
    """JSON of a source."""
    return json.dumps(source)


def from_text(text):
    """The source, a dict; ValueError for another text."""
    source = json.loads(text)
    if not isinstance(source, dict):
        raise ValueError(f'its source is no dict but {text[:40]}')
    return source


def _differences(made, asked):
    wrong = [key for key in asked if made.get(key) != asked[key]]
    if 'from' in wrong:  # and so all else
        wrong = ['from']
    elif len(wrong) > 1 and 'files' in wrong:  # which others describe better
        wrong.remove('files')
    return ' and '.join(_words(key, made.get(key), asked[key]) for key in wrong)


def _words(key, made, asked):
    if key == 'test' and isinstance(made, dict) and isinstance(asked, dict):
        return f'with test images {_differences(made, asked)}'
    if key == 'test':
        return 'with other test images'
    if key == 'from':
        return f'from {made}, not {asked}'
    if key == 'count':
        return f'from {made} files, not {asked}'
    if key == 'files':
        return 'from files that have changed since'
    return f'with {key} {str(made)[:80]}, not {str(asked)[:80]}'
