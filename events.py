"""TensorBoard's file of a folder, where each thing said is in the file by the next `flush`.

Not tensorboardX's SummaryWriter: its queue is in no flush, so that a kill after a checkpoint would lose what came
before it.
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
    """Scalars and images of a run, by step. Raises OSError where the folder cannot be written."""

    def __init__(self, folder):
        # TensorBoard reads the files in the order of their names: a new one goes last, be the clock set back.
        found = (re.match(r'events\.out\.tfevents\.(\d{10})\.', name) for name in os.listdir(folder))
        stamp = max([int(time.time()), *(int(name[1]) + 1 for name in found if name)])
        name = f'events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}'
        self.path = os.path.join(folder, name)
        self.writer = RecordWriter(self.path)
        self._write(file_version='brain.Event:2')

    def restart(self, step):
        """Hide what a killed run wrote of steps from `step` on."""
        self._write(step=step, session_log=SessionLog(status=SessionLog.START))

    def scalar(self, name, value, step):
        """Note a number."""
        self._write(step=step, summary=summary.scalar(name, value))

    def image(self, name, picture, step):
        """Note a PIL image."""
        self._write(step=step, summary=summary.image(name, np.asarray(picture), dataformats='HWC'))

    def flush(self):
        """Have on disk what was noted."""
        with self._named():
            self.writer.flush()

    def close(self):
        """End the file."""
        with self._named():
            self.writer.close()

    def _write(self, **event):
        with self._named():
            self.writer.write(Event(wall_time=time.time(), **event).SerializeToString())

    @contextlib.contextmanager
    def _named(self):
        try:
            yield
        except OSError as error:  # of a full disk, which names no file
            error.filename = self.path
            raise
