"""Keep the records of --eval and --nll, one line of JSON each, and tell which scores were measured in the same way."""

import json
import logging
import os

from run.config import complete, recorded_keys

MEASURED = 'weights', 'T', 'seed', 'n', 'reference', 'feature_net', 'weights_hash', 'protocol', 'precision'


def append(path, record):
    """Add a record to a file. If a kill or a full disk cut its last line off, that line is ended first."""
    with open(path, 'a+b') as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
        torn = file.read(1) not in (b'', b'\n')
        file.write(b'\n' * torn + json.dumps(record).encode() + b'\n')


def read(folder):
    """Return the records in eval.txt, oldest first. Warns of lines that are none, such as one that a kill cut off."""
    path, found = os.path.join(folder, 'eval.txt'), []
    if not os.path.exists(path):
        return found
    with open(path, errors='replace') as file:
        for number, line in enumerate(file, 1):
            try:
                found.append(dict(json.loads(line)))
            except (TypeError, ValueError):
                logging.warning('%s: line %d is no record and is left out', path, number)
    return found


def measured(record):
    """Return how a record was measured, {key: value}: records that agree in this can be compared."""
    whole = complete(record)
    return {key: whole.get(key) for key in (*MEASURED, *recorded_keys())}


def score_of(record, figure):
    """Return the value of a figure, whatever network it is of, or None if the record has none."""
    return next((value for key, value in record.items() if key.partition('(')[0] == figure), None)


def while_training(folder, record):
    """Return {step: record}, rising to that of `record`, of what eval.txt has that was measured as it was.

    If a step has two records, the later counts: a run that was killed evaluates some steps again.
    """
    how = measured(record)
    known = {each.get('step'): each for each in [*read(folder), record] if measured(each) == how}
    return {step: known[step] for step in sorted(known.keys() - {None}) if step <= record['step']}
