"""Run main.py in a process without what only POSIX has: python windows.py FLAG...

Workers are spawned, as on Windows and macOS, and import this file as they would import main.py there.
"""

import builtins
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

# Import torch first: what it does on import depends on sys.platform, not on which modules exist.
from torch.utils.data._utils import signal_handling

MODULES = 'fcntl', 'grp', 'pwd', 'resource', 'termios'
NAMES = {
    os: 'fork forkpty register_at_fork setpgrp setpgid getpgrp killpg setsid sched_getaffinity O_DIRECTORY',
    signal: 'SIGALRM SIGCHLD SIGHUP SIGUSR1 SIGUSR2 setitimer getitimer alarm pause',
}


class Missing:
    """An import finder that hides MODULES."""

    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)


def _open(path, *args, plain=os.open, **kwargs):
    if os.path.isdir(path):
        raise PermissionError(13, 'Permission denied', path)
    return plain(path, *args, **kwargs)


def _open_file(path, mode='r', *args, plain=open, **kwargs):
    if str(path).startswith('/proc/'):
        raise FileNotFoundError(2, 'No such file or directory', path)
    if 'b' not in mode and not args:
        kwargs.setdefault('encoding', 'cp1252')
    return plain(path, mode, *args, **kwargs)


for name in MODULES:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
for module, names in NAMES.items():
    for name in names.split():
        delattr(module, name)
os.open, builtins.open, shutil._use_fd_functions = _open, _open_file, False

sys.path.insert(0, str(Path(__file__).parent.parent))
import main  # noqa: E402
from dataset import loader  # noqa: E402

signal_handling.IS_WINDOWS = True  # torch takes it from sys.platform
loader.RESIDENT_BYTES = 0  # every data set is too large to keep on the device

if __name__ == '__main__':
    multiprocessing.set_start_method('spawn')
    main.app.run(main.main, flags_parser=main.parse_flags)
