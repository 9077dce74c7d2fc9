"""Show progress on stderr: a bar in a terminal; elsewhere, such as in a log file, a plain line every 30 seconds."""

import os
import sys
import time

from tqdm import tqdm

SECONDS = 30  # between plain lines
_silent = False


def silence():
    """Show nothing from here on. If there are several processes, only one shows progress."""
    global _silent
    _silent = True


def bar(iterable=None, desc='', total=None, unit='it', initial=0, leave=True):
    """Return a tqdm bar or, if stderr is not a terminal, `Lines`. With TQDM_DISABLE=1 neither shows anything.

    leave: whether a line stays even after a short task.
    """
    if total is None and hasattr(iterable, '__len__'):
        total = len(iterable)
    options = {'desc': desc, 'total': total, 'unit': unit, 'initial': initial, 'leave': leave}
    silent = _silent or os.environ.get('TQDM_DISABLE', '0').lower() not in ('', '0', 'false')
    if sys.stderr.isatty():
        return tqdm(iterable, dynamic_ncols=True, disable=silent, **options)
    return Lines(iterable, silent, **options)


def counted(batches, desc, total, unit):
    """Yield batches, (x [n, ...], y), and show a bar that counts their items."""
    with bar(desc=desc, total=total, unit=unit, leave=False) as shown:
        for batch in batches:
            yield batch
            shown.update(len(batch[0]))


class Lines:
    """The part of tqdm that this program uses, printed as plain lines."""

    def __init__(self, iterable, silent, desc, total, unit, initial, leave):
        self.iterable, self.desc, self.total, self.unit = iterable, desc, total, unit
        self.n, self.initial, self.leave = initial, initial, leave
        self.silent = silent
        self.postfix, self.shown = '', None  # shown: n of the last line
        self.begin = self.last = time.monotonic()

    def __iter__(self):
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def update(self, n=1):
        """Add n to the count."""
        self.n += n
        if time.monotonic() - self.last >= SECONDS:
            self.refresh()

    def set_postfix(self, refresh=True, **values):
        """Set the text at the end of a line."""
        self.postfix = ''.join(f', {key}={value}' for key, value in values.items())

    def refresh(self):
        """Print the count now, unless the last line already shows it."""
        previous, self.last, self.shown = self.shown, time.monotonic(), self.n
        if self.silent or previous == self.n:
            return
        seconds, done = self.last - self.begin, self.n - self.initial
        rate = done / seconds if seconds else 0
        parts = [f'{self.n}{f"/{self.total}" if self.total else ""} {self.unit}s']
        parts += [f'{tqdm.format_interval(seconds)} gone'] if done else []
        if rate and self.total and self.n < self.total:
            parts.append(f'{tqdm.format_interval((self.total - self.n) / rate)} left')
        print(f'{self.desc}: ' * bool(self.desc) + ', '.join(parts) + self.postfix, file=sys.stderr, flush=True)

    def close(self):
        """Print the final count."""
        if self.leave or self.shown is not None:
            self.refresh()
