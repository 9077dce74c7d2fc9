"""Run main.py, and read what runs leave: their configs, checkpoints and TensorBoard's files."""

import multiprocessing
import os
import struct
import sys
from pathlib import Path

import torch
from absl.testing import flagsaver
from tensorboardX.proto import event_pb2

import main
from run import checkpoint

TESTS = Path(__file__).parent


def config_of(*argv):
    """Return the config that main.py would make of these flags."""
    with flagsaver.flagsaver():
        main.parse_flags(['main.py', *map(str, argv)])
        config, _ = main.configuration()
        config.channels = 1
        return config


def load(logdir, name='ckpt.pt'):
    return checkpoint.load(str(Path(logdir) / name))


def differences(a, b, where=''):
    """Yield the paths at which two nests of tensors and values differ by at least one bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [where]
        return [path for key in a for path in differences(a[key], b[key], f'{where}/{key}')]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [where]
        return [path for i, pair in enumerate(zip(a, b, strict=True)) for path in differences(*pair, f'{where}/{i}')]
    return [] if a == b else [where]


def without_logdir(state):
    return {**state, 'config': {key: value for key, value in state['config'].items() if key != 'logdir'}}


def scalars(logdir, tag):
    """Return {step: value} as TensorBoard shows it: files by name, a restart hides later steps, no step comes twice.

    A file that a kill cut off is read up to the cut.
    """
    found = {}
    for path in sorted(Path(logdir).glob('events.*')):
        content, at = path.read_bytes(), 0
        while at + 12 <= len(content):
            (length,) = struct.unpack_from('<Q', content, at)
            if at + 16 + length > len(content):
                break
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            if event.session_log.status == event_pb2.SessionLog.START:
                found = {step: value for step, value in found.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == tag:
                    assert event.step not in found, f'{tag} of step {event.step} twice'
                    found[event.step] = value.simple_value
            at += 16 + length
    return found


def one_line(error):
    """Return the error message, one line, that a run ends with on stderr."""
    (line,) = error.strip().splitlines()[-1:]
    assert line.startswith('main.py: error: ') and 'Traceback' not in error
    return line


class Forked:
    """main.py in a process forked from one that has imported it, which saves seconds.

    before: called first in the process, such as one of `kills`; if it exits, it runs in place of main.py.
    """

    def __init__(self, *argv, log, before=None):
        self.log = Path(log)
        self.process = _server().Process(target=_child, args=([str(word) for word in argv], str(log), before))
        self.process.start()
        self.pid = self.process.pid

    def status(self, timeout=120):
        """Return the exit status, or minus the signal that ended it."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f'{self.pid} hangs: {self.error()}'
        return self.process.exitcode

    def error(self):
        """Return what it wrote to stderr."""
        return self.log.read_text()


def _server():
    os.environ['PYTHONPATH'] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    server = multiprocessing.get_context('forkserver')
    server.set_forkserver_preload(['runs', 'kills', 'pytest', 'sklearn.datasets', 'torch._dynamo'])
    return server


def _child(argv, log, before):
    with open(log, 'w') as file:
        os.dup2(file.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(1)
    multiprocessing.set_start_method('fork', force=True)  # for data workers, as in a process that a shell started
    if before:
        before()
    sys.exit(main.main(main.parse_flags(['main.py', *argv])))
