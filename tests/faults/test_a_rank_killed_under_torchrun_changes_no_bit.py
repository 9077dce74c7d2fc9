"""torchrun restarts all ranks if one dies, and passes on a signal to stop. Neither loses or changes a step."""

import os
import signal
import subprocess
import sys
import time

from conftest import ROOT, TINY
from ranks import Ranks
from runs import TESTS, differences, load, without_logdir

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
FLAGS = [*TINY, '--train', '--parallel', '--total_steps=12', '--save_step=5', '--logdir']


def torchrun(script, *flags, log):
    with open(log, 'w') as file:
        command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
        command += ['--max-restarts=1', script, *map(str, flags)]
        return subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def test_a_killed_rank(tmp_path):
    script = tmp_path / 'killed_once.py'
    script.write_text(KILLED_ONCE)
    run = torchrun(script, *FLAGS, tmp_path / 'run', log=tmp_path / 'log')
    whole = Ranks(2, *FLAGS, tmp_path / 'whole', log=tmp_path / 'whole.log')
    assert whole.status() == [0, 0], whole.error()
    assert run.wait(120) == 0, (tmp_path / 'log').read_text()
    assert 'resuming' in (tmp_path / 'log').read_text()
    states = [without_logdir(load(tmp_path / name)) for name in ('run', 'whole')]
    assert states[0]['step'] == 12 and not differences(*states)


def test_a_preempted_torchrun(tmp_path):
    script = ROOT / 'main.py'
    run = torchrun(script, *FLAGS, tmp_path / 'run', '--total_steps=100000', '--save_step=0', log=tmp_path / 'log')
    deadline = time.monotonic() + 60
    while not list((tmp_path / 'run').glob('events.*')):  # wait for the first step
        assert time.monotonic() < deadline and run.poll() is None, (tmp_path / 'log').read_text()
        time.sleep(0.1)
    time.sleep(1)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) != 0
    assert load(tmp_path / 'run')['step'] > 0
    assert not (tmp_path / 'run' / 'ckpt.prev.pt').exists()
