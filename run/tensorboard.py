"""Write TensorBoard's event files.

tensorboardX's SummaryWriter is not used: its flush leaves out its queue, so that a kill after a checkpoint would lose
events from before it. Here every event is in the file after the next `flush`.
"""

import contextlib
import os
import re
import socket
import time

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter


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
