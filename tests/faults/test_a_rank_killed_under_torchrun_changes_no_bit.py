"""torchrun restarts all ranks if one dies, and passes on a signal to stop. Neither loses or changes a step."""

import os
import signal
import subprocess
import sys
import time

from conftest import ROOT, TINY
from ranks import Ranks
from runs import TESTS, differences, load, scalars

KILLED_ONCE = f"""
import os, pathlib, sys
sys.path[:0] = [{str(ROOT)!r}, {str(TESTS)!r}]
import kills, main
if os.environ['RANK'] == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':
    kills.on_call('train.Run.update', nth=8)
status = main.main(main.parse_flags(sys.argv))
threads = [path.read_text() for path in pathlib.Path('/proc/self/task').glob('*/comm')]
assert not any('gloo' in name for name in threads), threads  # one that lives on can abort the process at its end
sys.exit(status)
"""
FLAGS = [*TINY, '--train', '--parallel', '--save_step=5', '--logdir']


def torchrun(script, *flags, log):
    with open(log, 'w') as file:
        command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
        command += ['--max-restarts=1', script, *map(str, flags)]
        return subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def test_a_killed_rank_then_a_signal(tmp_path):
    script, log = tmp_path / 'killed_once.py', tmp_path / 'log'
    script.write_text(KILLED_ONCE)
    run = torchrun(script, *FLAGS, tmp_path / 'run', '--total_steps=100000', log=log)
    deadline = time.monotonic() + 120
    while max(scalars(tmp_path / 'run', 'loss'), default=0) < 12:  # rank 1 was killed at step 8
        assert time.monotonic() < deadline and run.poll() is None, log.read_text()
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) != 0 and 'resuming' in log.read_text() and 'AssertionError' not in log.read_text()
    step = load(tmp_path / 'run')['step']
    assert step == max(scalars(tmp_path / 'run', 'loss'))  # the signal saved it
    whole = Ranks(2, *FLAGS, tmp_path / 'whole', f'--total_steps={step}', log=tmp_path / 'whole.log')
    assert whole.status() == [0, 0], whole.error()
    states = [load(tmp_path / name) for name in ('run', 'whole')]
    for state in states:
        del state['config']  # which names the folder and the steps to come
    assert not differences(*states)
