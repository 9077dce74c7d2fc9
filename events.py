"""TensorBoard's file of a folder, where each thing said is in the file by the next `flush`.

Not tensorboardX's SummaryWriter: its queue is in no flush, so that a kill after a checkpoint would lose what came
before it.
"""

import os
import time

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


class Events:
    """Scalars and images of a run, by step. Raises OSError where the folder cannot be written."""

    def __init__(self, folder):
        # The process is in the file's name, since another run started within the same second would overwrite it.
        self.writer = EventsWriter(os.path.join(folder, 'events'), f'.{os.getpid()}')
        self.flush, self.close = self.writer.flush, self.writer.close

    def restart(self, step):
        """Hide what a killed run wrote of steps from `step` on."""
        self.writer.write_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def scalar(self, name, value, step):
        """Note a number."""
        self._write(summary.scalar(name, value), step)

    def image(self, name, picture, step):
        """Note a PIL image."""
        self._write(summary.image(name, np.asarray(picture), dataformats='HWC'), step)

    def _write(self, content, step):
        self.writer.write_event(Event(wall_time=time.time(), step=step, summary=content))
