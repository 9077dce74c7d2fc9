"""Decide whether torch.compile pays for a run, and whether it works here."""

import functools
import getpass
import logging
import os
import re
import tempfile

import torch
from torch.utils.flop_counter import FlopCounterMode

from run import build, distributed, hardware


def _cpu():
    """Return a name for this user on this kind of CPU."""
    try:
        user = re.sub(r'[\\/:*?"<>|]', '_', getpass.getuser())
    except (ImportError, KeyError, OSError):  # in a container that does not know its user
        user = f'uid_{os.getuid()}' if hasattr(os, 'getuid') else 'user'
    extensions = [
        name
        for name in ('amx_tile', 'avx512_bf16', 'vnni')
        if getattr(torch.cpu, f'_is_{name}_supported', lambda: False)()
    ]
    return '_'.join([user, torch.backends.cpu.get_cpu_capability(), *extensions])


# torch's cache of compiled code ignores the kind of CPU: code that was compiled for another kind gives NaN.
os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', os.path.join(tempfile.gettempdir(), f'torchinductor_{_cpu()}'))

COMPILING = 'compiling: a minute or two before the first step'

# Roughly how many floating-point operations a second an uncompiled network computes, and after how many seconds of them
# compiling has paid for the minute or two it takes. Other kinds of device compile only with --compile=on.
RATE = {'cuda': 8e13, 'cpu': 2e11}
COMPILE_SECONDS = {'cuda': 200, 'cpu': 600}

# Options of inductor. In a CUDA graph the GPU need not wait for Python to launch each of its hundreds of kernels. The
# thresholds let the backward pass of GroupNorm and SiLU compute a gradient twice. Below them it is computed once, and
# its float32 values are written to memory and read again, which takes several times as long.
GRAPHS = 'triton.cudagraphs'
THRESHOLDS = {'realize_reads_threshold': 32, 'realize_acc_reads_threshold': 32, 'realize_opcount_threshold': 200}
OPTIONS = {'cuda': {GRAPHS: True, **THRESHOLDS}}


def options(config, parts=1):
    """Return the options of inductor for a network whose gradient, if it has one, is the sum of `parts`.

    There are no graphs if gradients are added or exchanged, as the next replay writes to the memory of the last one.
    """
    wanted = OPTIONS.get(hardware.device(config).type, {})
    alone = parts == distributed.world() == 1
    return wanted if alone else {key: value for key, value in wanted.items() if key != GRAPHS}


def compiles(config, images, backward=False):
    """Return whether to compile a network that will see `images` images: as --compile says; auto: if it pays.

    With auto, warns and returns False if torch.compile does not work. backward: whether gradients are computed too.
    """
    kind = hardware.device(config).type
    if config.compile != 'auto' or kind not in RATE:
        return config.compile == 'on'
    seconds = flops(config) * (3 if backward else 1) * images / RATE[kind]
    return seconds > COMPILE_SECONDS[kind] and not _warned(compile_failure(kind))


def compile_if_it_pays(model, config, images):
    """Compile an `Inference` that will see `images` images, and say so, if `compiles` says that it pays."""
    if compiles(config, images):
        logging.info(COMPILING)
        model.compile(**options(config))


@functools.cache
def compile_failure(kind):
    """Return why torch.compile fails on this kind of device, in one line; '' if it works. Tries once, in seconds."""
    try:
        torch.compile(lambda x: 2 * x + 1, fullgraph=True)(torch.zeros(8, device=kind))
    except Exception as error:  # inductor, triton or a missing compiler may raise anything
        return str(getattr(error, 'inner_exception', error)).strip().partition('\n')[0] or type(error).__name__
    return ''


@functools.cache
def _warned(failure):
    if failure:
        logging.warning('torch.compile does not work here (%s): going on without it, slower. %s', failure, TO_COMPILE)
    return bool(failure)


TO_COMPILE = "It needs a C++ compiler, such as g++, and Python's headers"


def flops(config):
    """Return the floating-point operations of one network call on one image; a multiply-add counts as two."""
    with torch.device('meta'), FlopCounterMode(display=False) as counter:
        build.network(config)(torch.zeros(1, *build.shape(config)), torch.zeros(1, dtype=torch.int64))
    return counter.get_total_flops()
