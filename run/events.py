"""Log a training, and what is found later, to the trackers that --track names."""

import contextlib
import logging
import math
import time
from collections import deque

import torch

import score
from run import hardware, progress
from run.trackers import TRACKERS

LOG_SECONDS = 1.0  # between readings of the losses on a GPU, since each waits for the GPU
OTHER_SCORES = 'SW', 'label_accuracy', 'bits_per_dim'  # in a record, beside the figures of score.METRICS


def scores_of(record):
    """Return {tag: value} for the scores in a record of --eval or --nll."""
    weights, prefixes = record['weights'].upper(), (*score.figure_names(), *OTHER_SCORES)
    return {
        f'{name}_{weights}': value for name, value in record.items() if name.startswith(prefixes) and value is not None
    }


def note(config, folder, step, scalars=(), images=()):
    """Add {tag: number} and {tag: PIL image}, made from the checkpoint of `step`, to the run in a folder.

    Only warns if the folder cannot be written: the checkpoint may belong to someone else.
    """
    for name in config.track:
        try:
            with contextlib.closing(TRACKERS[name](folder)) as tracker:
                tracker.add(step or 0, scalars, images)
        except OSError as error:
            logging.warning('not in %s: %s', name, error)


class Silence:
    """A `Log` that does nothing, for all ranks but 0."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __getattr__(self, name):
        return lambda *_: None


class Losses:
    """Losses and gradient norms of steps. They stay on the device until `read` takes and checks them all at once."""

    def __init__(self, remedy):
        """remedy: a function that returns what to do about a loss that is not finite."""
        self.remedy = remedy
        self.pending = []  # (step, loss and norm, lr)

    def add(self, step, loss, norm, lr):
        """Add one step."""
        self.pending.append((step, torch.stack([loss, norm]), lr))

    def read(self):
        """Give (step, loss, norm, lr) of each noted step. Raise FloatingPointError at the first that is not finite."""
        pending, self.pending = self.pending, []
        values = torch.stack([pair for _, pair, _ in pending]).tolist() if pending else []
        for (step, _, lr), (loss, norm) in zip(pending, values, strict=True):
            if not math.isfinite(loss + norm):
                raise FloatingPointError(f'step {step}: loss {loss}, gradient norm {norm}: {self.remedy()}')
            yield step, loss, norm, lr


class Log:
    """The trackers and the progress bar. Losses are read off the device and checked when shown and before a save.

    A point of a tracker is the mean over the steps since the point before it. There is one every --log_step steps
    and one at each flush, which precedes each checkpoint: a resumed run thus counts each step in exactly one mean.
    """

    def __init__(self, run, flagfile):
        self.run = run
        self.open = contextlib.ExitStack()
        self.bar = self.open.enter_context(progress.bar(total=run.config.total_steps, initial=run.step, unit='step'))
        made = [TRACKERS[name](run.config.logdir) for name in run.config.track]
        self.trackers = [self.open.enter_context(contextlib.closing(tracker)) for tracker in made]
        self._tell('restart', run.step + 1 if run.step else 0)
        self._tell('flags', flagfile, vars(run.config))
        self.losses = Losses(self._remedy)
        self.read_since = []  # (loss, norm, seconds) of each step since the last point
        self.recent = deque(maxlen=100)  # losses, shown as their mean
        self.restart_clock()

    def restart_clock(self):
        """Restart the clock, so that images per second leave out what was just done."""
        self.last = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.open.close()

    def _tell(self, method, *arguments):
        for tracker in self.trackers:
            getattr(tracker, method)(*arguments)

    def add(self, loss, norm, lr):
        """Add one step."""
        self.losses.add(self.run.step, loss, norm, lr)
        if self.run.device.type == 'cpu' or time.monotonic() - self.last > LOG_SECONDS:
            self.read()

    def flush(self):
        """Read the steps added and write them to disk. Call it before each checkpoint: no later run repeats them."""
        self.read()
        self.point()
        self._tell('flush')
        self.bar.refresh()

    def read(self):
        """Read, check and write the steps added. Raises FloatingPointError as `Losses.read`."""
        n = len(self.losses.pending)
        if not n:
            return
        now = time.monotonic()
        seconds = (now - self.last) / n
        for step, loss, norm, lr in self.losses.read():
            self.newest = step, loss, lr
            self.read_since.append((loss, norm, seconds))
            self.recent.append(loss)
            if step % self.run.config.log_step == 0:
                self.point()
        self.bar.update(n)
        mean, rate = sum(self.recent) / len(self.recent), self.run.config.batch_size / max(seconds, 1e-9)
        self.bar.set_postfix(loss=f'{mean:.4f}', raw=f'{loss:.4f}', lr=f'{lr:.1e}', img_s=f'{rate:.0f}', refresh=False)
        self.last = now

    def point(self):
        """Write the mean over the steps since the last point, if there are any."""
        if not self.read_since:
            return
        step, raw, lr = self.newest
        loss, norm, seconds = (sum(column) / len(self.read_since) for column in zip(*self.read_since, strict=True))
        rate = self.run.config.batch_size / max(seconds, 1e-9)
        self._tell('add', step, {'loss': loss, 'loss_raw': raw, 'lr': lr, 'grad_norm': norm, 'img_per_sec': rate})
        self.read_since = []

    def _remedy(self):
        config, saved = self.run.config, self.run.saved
        kept = f'the checkpoint is of step {saved}' if saved >= 0 else 'there is no checkpoint yet'
        tips = ['a lower --lr', 'a lower --grad_clip' if config.grad_clip else '--grad_clip=1']
        tips += ['--precision=fp32'] if hardware.precision(config) != torch.float32 else []
        return f'stopped before the update; {kept}; try {", ".join(tips[:-1])} or {tips[-1]}'

    def image(self, name, picture):
        """Send a PIL image to the trackers."""
        self._tell('add', self.run.step, {}, {name: picture})
        self._tell('flush')

    def scores(self, record):
        """Send the scores of an evaluation to the trackers."""
        self._tell('add', self.run.step, scores_of(record))
        self._tell('flush')
