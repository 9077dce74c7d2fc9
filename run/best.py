"""Keep the checkpoint with the best score so far as ckpt.best.pt. The score is in that file: the two go together."""

import logging
import math
import os

import score
from run import checkpoint, files, records

ENTRY = 'figure', 'value', 'step', 'measured'


class Best:
    """The best score so far by --keep_best, for rank 0.

    entry: what the checkpoint with that score holds of it under 'best', a dict of ENTRY, or None.
    """

    def __init__(self, figure, path):
        """Read the best score so far. figure: a key of `score.ranking`. path: of the run's ckpt.pt.

        Raises CheckpointError if ckpt.best.pt is damaged, was not kept by --keep_best, or is of a run that is gone.
        """
        self.figure, self.current, self.path, self.entry = figure, path, checkpoint.best(path), None
        if not os.path.exists(self.path):
            return
        remedy = 'move it away to begin anew'
        if not checkpoint.exists(path):
            raise checkpoint.CheckpointError(f'{self.path} is of a run whose {path} is gone: {remedy}')
        with checkpoint.refusing_other_forms(self.path):
            self.entry = checkpoint.read(self.path).get('best', {})
            if not set(ENTRY) <= self.entry.keys():
                raise checkpoint.CheckpointError(f'{self.path} was not kept by --keep_best: {remedy}')
            self.entry['measured'] = records.measured(self.entry['measured'])  # with flags that are newer than it

    def note(self, record):
        """Return whether a record of --eval_step is the best so far; of equal ones the first is.

        If the best before it was measured in another way, the two cannot be compared. Then that file gets the name of
        its step, and the record is the best.
        """
        value, measured = records.score_of(record, self.figure), records.measured(record)
        if value is None or not math.isfinite(value):
            logging.warning('%s of step %s is %s: it is not compared', self.figure, record['step'], value)
            return False
        if self.entry and (self.entry['figure'], self.entry['measured']) != (self.figure, measured):
            self._set_aside()
        pick = score.ranking(score.METRICS)[self.figure]
        if self.entry and pick(self.entry['value'], value) == self.entry['value']:
            return False
        self.entry = dict(zip(ENTRY, (self.figure, value, record['step'], measured), strict=True))
        logging.info('%s %.5g of step %s is the best so far: %s', self.figure, value, record['step'], self.path)
        return True

    def _set_aside(self):
        kept = checkpoint.numbered(self.current, self.entry['step'])
        text = '%s is the best by %s measured in another way: it is %s from now on'
        logging.warning(text, self.path, self.entry['figure'], kept)
        files.replace(self.path, kept)
        self.entry = None
