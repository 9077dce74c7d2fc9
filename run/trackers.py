"""Name the trackers, to which a run sends its flags, scalars, pictures and scores.

A tracker has the methods of `tensorboard.Events`: restart, flags, add, flush and close. TensorBoard's files lie beside
the checkpoint and are written as they come. The others belong to other programs, which may fail or hang: each has a
thread of its own.
"""

import importlib
import json
import logging
import os
import queue
import secrets
import threading
import time
from functools import partial

from run import files
from run.errors import usage
from run.tensorboard import Events

WAITING = 1000  # calls that may wait for a tracker; further ones are dropped
PATIENCE = 30.0  # seconds that the end of a run waits for a tracker


class Background:
    """A tracker on a thread of its own: if it fails or hangs, a training goes on as fast as without it.

    A failure is one warning, and the tracker is told nothing more. If it does not keep up, what it misses is dropped.
    """

    def __init__(self, name, make):
        """make: a function without arguments that returns the tracker, called on the thread."""
        self.name, self.calls, self.warned = name, queue.Queue(WAITING), False
        self.thread = threading.Thread(target=self._work, args=(make,), name=name, daemon=True)
        self.thread.start()

    def restart(self, step):
        """As `Events.restart`, later."""
        self._call('restart', step)

    def flags(self, flagfile, config):
        """As `Events.flags`, later."""
        self._call('flags', flagfile, dict(config))

    def add(self, step, scalars=(), images=()):
        """As `Events.add`, later."""
        self._call('add', step, dict(scalars), dict(images))

    def flush(self):
        """Do nothing: the thread sends what it has as soon as it can."""

    def close(self):
        """Let the tracker take what waits and close. It has `PATIENCE` seconds for it, and is then left alone."""
        end = time.monotonic() + PATIENCE
        while self.thread.is_alive() and time.monotonic() < end:
            try:
                self.calls.put(('close', ()), timeout=0.1)
                self.thread.join(max(0.0, end - time.monotonic()))
            except queue.Full:
                continue
        if self.thread.is_alive():
            self._warn(f'it has not taken everything within {PATIENCE:g} s; the rest is lost')

    def _call(self, method, *arguments):
        if not self.thread.is_alive():
            return
        try:
            self.calls.put_nowait((method, arguments))
        except queue.Full:
            self._warn(f'it does not keep up: {WAITING} calls wait, and further ones are dropped')

    def _work(self, make):
        method = None
        try:
            tracker = make()
            while method != 'close':
                method, arguments = self.calls.get()
                getattr(tracker, method)(*arguments)
        except (Exception, SystemExit) as error:  # any that a foreign program may raise
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
            self._warn(f'{reason}; the run goes on without it')

    def _warn(self, message):
        if not self.warned:
            self.warned = True
            logging.warning('--track=%s: %s', self.name, message)


class Hosted:
    """A run of wandb or trackio. It goes on with the one that logdir/<name>.json names.

    That file has the run's id, how many rows were sent, and for each tag the last step that was. A run that was killed
    after its last checkpoint takes some steps twice; what it sent of them is not sent again.
    """

    def __init__(self, folder, name, begin):
        """begin: a function of (folder, id, {flag: value}) that returns the run, its log, a function of (row, step,
        number of rows before), and its class of images.
        """
        self.folder, self.path, self.begin = folder, os.path.join(folder, f'{name}.json'), begin
        self.run, self.sent_before = None, {}
        self.known = self._read() if os.path.exists(self.path) else self._new()

    def _read(self):
        try:
            with open(self.path) as file:
                known = json.load(file)
            return {key: kind(known[key]) for key, kind in (('id', str), ('rows', int), ('sent', dict))}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f'{self.path} cannot be read ({error}): remove it, and a new run begins') from error

    @staticmethod
    def _new():
        return {'id': secrets.token_hex(4), 'rows': 0, 'sent': {}}

    def restart(self, step):
        """Begin a new run at step 0. Otherwise leave out, from now on, what a killed run sent of later steps."""
        if step:
            self.sent_before = dict(self.known['sent'])
        else:
            self.known = self._new()

    def flags(self, flagfile, config):
        """Open the run with its flags."""
        plain = bool, int, float, str, list, type(None)
        values = {key: value if isinstance(value, plain) else str(value) for key, value in config.items()}
        self._open({**values, 'flagfile': flagfile})

    def _open(self, values):
        self.run, self.log, self.image = self.begin(os.path.abspath(self.folder), self.known['id'], values)

    def add(self, step, scalars, images):
        """Send {tag: number} and {tag: PIL image}."""
        if not self.run:
            self._open({})
        values = {**scalars, **{tag: self.image(picture) for tag, picture in images.items()}}
        values = {tag: value for tag, value in values.items() if step > self.sent_before.get(tag, -1)}
        if values:
            self.log(values, step, self.known['rows'])
            self.known['rows'] += 1
            self.known['sent'] |= dict.fromkeys(values, step)
            files.write_text(self.path, json.dumps(self.known))

    def close(self):
        """End the run, once it has sent everything."""
        if self.run:
            self.run.finish()


def _wandb(folder, id, values):
    """Begin a run of wandb, which numbers rows by steps of its own and refuses one that it has passed.

    Our steps are therefore a column, against which it draws the others.
    """
    import wandb

    ours = {'project': 'ddpm', 'name': os.path.basename(folder), 'dir': folder}
    ours = {key: value for key, value in ours.items() if f'WANDB_{key.upper()}' not in os.environ}
    # Its exit hook waits for both, even after `Background.close` has given up.
    settings = wandb.Settings(console='off', init_timeout=PATIENCE, finish_timeout=PATIENCE)
    run = wandb.init(id=id, resume='allow', settings=settings, **ours)
    run.config.update(values, allow_val_change=True)
    run.define_metric('*', step_metric='step')
    return run, lambda row, step, n: run.log({**row, 'step': step}, step=n), wandb.Image


def _trackio(folder, id, values):
    """Begin a run of trackio, which tells runs apart by their names."""
    import trackio

    run = trackio.init('ddpm', f'{os.path.basename(folder)}-{id}', config=values, resume='allow', embed=False)
    return run, lambda row, step, n: run.log(row, step=step), trackio.Image


SERVICES = {'wandb': _wandb, 'trackio': _trackio}  # name of the package -> function that begins a run


def _background(name, folder):
    return Background(name, partial(Hosted, folder, name, SERVICES[name]))


# name -> function of a run's folder that returns the tracker
TRACKERS = {'tensorboard': Events, **{name: partial(_background, name) for name in SERVICES}}


@usage()
def check(names):
    """Import the packages of trackers, before there are threads. Raises UsageError if one is missing."""
    for name in SERVICES.keys() & set(names):
        try:
            importlib.import_module(name)
        except ImportError as error:
            reason = f'pip install -r requirements-track.txt ({error})'
            raise ValueError(f'--track={name} needs a package: {reason}') from error
