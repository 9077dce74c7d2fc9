"""Write TensorBoard's event files, and log a training to them.

tensorboardX's SummaryWriter is not used: its flush leaves out its queue, so that a kill after a checkpoint would lose
events from before it. Here every event is in the file after the next `flush`.
"""

import contextlib
import logging
import math
import os
import re
import socket
import time
from collections import deque

import numpy as np
import torch
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

import score
from run import hardware, progress

LOG_SECONDS = 1.0  # between readings of the losses on a GPU, since each waits for the GPU
OTHER_SCORES = 'SW', 'label_accuracy', 'bits_per_dim'  # in a record, beside the figures of score.METRICS


class Events:
    """Scalars, images and flags of a run, by step. Raises OSError if the folder cannot be written."""

    def __init__(self, folder):
        self.folder = folder
        self._open()

    def _open(self):
        # TensorBoard reads files in the order of their names: a new one must be last, even if the clock was set back.
        found = (re.match(r'events\.out\.tfevents\.(\d{10})\.', name) for name in os.listdir(self.folder))
        stamp = max([int(time.time()), *(int(name[1]) + 1 for name in found if name)])
        name = f'events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}'
        self.path = os.path.join(self.folder, name)
        self.writer = RecordWriter(self.path)
        self._write(file_version='brain.Event:2')

    def restart(self, step):
        """Hide what a killed run wrote about `step` and later steps."""
        self._write(step=step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step, scalars=(), images=()):
        """Add {tag: number} and {tag: PIL image}."""
        for name, value in dict(scalars).items():
            self._write(step=step, summary=summary.scalar(_legal(name), value))
        for name, picture in dict(images).items():
            self._write(step=step, summary=summary.image(_legal(name), np.asarray(picture), dataformats='HWC'))

    def flags(self, flagfile, config):
        """Add the flags of a run, as text and as hyperparameters. flagfile: text. config: {name: value}."""
        lines = ''.join(f'    {line}\n' for line in flagfile.splitlines())  # Markdown's code
        values = {key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in config.items()}
        experiment, start, _ = summary.hparams(values, {'loss': None})
        for each in (summary.text('flags', lines), experiment, start):
            self._write(step=0, summary=each)

    def flush(self):
        """Write everything added to disk.

        Goes on in a new file if another process, such as an --eval, has begun one: TensorBoard reads only the last.
        """
        with self._named():
            self.writer.flush()
        last = max(name for name in os.listdir(self.folder) if name.startswith('events.out.tfevents.'))
        if last > os.path.basename(self.path):
            self.close()
            self._open()

    def close(self):
        """Close the file."""
        with self._named():
            self.writer.close()

    def _write(self, **event):
        with self._named():
            self.writer.write(Event(wall_time=time.time(), **event).SerializeToString())

    @contextlib.contextmanager
    def _named(self):
        try:
            yield
        except OSError as error:  # the error of a full disk names no file
            error.filename = self.path
            raise


def _legal(name):
    return re.sub(r'[^\w./-]+', '_', name.replace(')', ''))


def scores_of(record):
    """Return {tag: value} for the scores in a record of --eval or --nll."""
    weights, prefixes = record['weights'].upper(), (*score.figure_names(), *OTHER_SCORES)
    return {
        f'{name}_{weights}': value for name, value in record.items() if name.startswith(prefixes) and value is not None
    }


def note(folder, step, scalars=(), images=()):
    """Add {tag: number} and {tag: PIL image}, made from the checkpoint of `step`, to the run in a folder.

    Only warns if the folder cannot be written: the checkpoint may belong to someone else.
    """
    try:
        events = Events(folder)
        events.add(step or 0, scalars, images)
        events.close()
    except OSError as error:
        logging.warning('not in TensorBoard: %s', error)


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
    """TensorBoard and the progress bar. Losses are read off the device and checked when shown and before a save.

    A point in TensorBoard is the mean over the steps since the point before it. There is one every --log_step steps
    and one at each flush, which precedes each checkpoint: a resumed run thus counts each step in exactly one mean.
    """

    def __init__(self, run, flagfile):
        self.run = run
        self.bar = progress.bar(total=run.config.total_steps, initial=run.step, unit='step')
        self.events = Events(run.config.logdir)
        self.events.restart(run.step + 1 if run.step else 0)
        self.events.flags(flagfile, vars(run.config))
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
        try:
            self.events.close()
        finally:
            self.bar.close()

    def add(self, loss, norm, lr):
        """Add one step."""
        self.losses.add(self.run.step, loss, norm, lr)
        if self.run.device.type == 'cpu' or time.monotonic() - self.last > LOG_SECONDS:
            self.read()

    def flush(self):
        """Read the steps added and write them to disk. Call it before each checkpoint: no later run repeats them."""
        self.read()
        self.point()
        self.events.flush()
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
        self.events.add(step, {'loss': loss, 'loss_raw': raw, 'lr': lr, 'grad_norm': norm, 'img_per_sec': rate})
        self.read_since = []

    def _remedy(self):
        config, saved = self.run.config, self.run.saved
        kept = f'the checkpoint is of step {saved}' if saved >= 0 else 'there is no checkpoint yet'
        tips = ['a lower --lr', 'a lower --grad_clip' if config.grad_clip else '--grad_clip=1']
        tips += ['--precision=fp32'] if hardware.precision(config) != torch.float32 else []
        return f'stopped before the update; {kept}; try {", ".join(tips[:-1])} or {tips[-1]}'

    def image(self, name, picture):
        """Send a PIL image to TensorBoard."""
        self.events.add(self.run.step, images={name: picture})
        self.events.flush()

    def scores(self, record):
        """Send the scores of an evaluation to TensorBoard."""
        self.events.add(self.run.step, scores_of(record))
        self.events.flush()
