"""Measure the seconds and bytes that candidates for the same work take, in turn in one process."""

import math
import statistics
import time

import torch


def synchronize():
    """Wait for the accelerator, if there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def interleaved(candidates, repeats, limit=math.inf):
    """Time {name: function} and return {name: (median seconds, median ratio to the first, peak bytes)}.

    Each round calls every function once. A ratio compares two calls of one round, so that whatever slows the machine
    for a while slows both. The first two rounds, in which things are compiled and allocated, do not count. After
    `limit` seconds no further round begins, but at least one round counts.
    """
    seconds, peaks = {name: [] for name in candidates}, {}
    start = time.perf_counter()
    for repeat in range(repeats + 2):
        if repeat > 2 and time.perf_counter() - start > limit:
            break
        for name, function in candidates.items():
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            synchronize()
            begin = time.perf_counter()
            function()
            synchronize()
            if repeat > 1:
                seconds[name].append(time.perf_counter() - begin)
            peaks[name] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    first = next(iter(seconds.values()))
    ratios = {name: [a / b for a, b in zip(first, values, strict=True)] for name, values in seconds.items()}
    return {name: (statistics.median(seconds[name]), statistics.median(ratios[name]), peaks[name]) for name in seconds}


def peak_rate(device, dtype):
    """Return the floating-point operations per second of the device's fastest product of two large matrices.

    The matrices grow until a product takes 0.05 s. Larger ones are no faster, and take long on a slow machine.
    """
    rate = 0
    for n in (512, 1024, 2048, 4096, 8192):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        seconds = min(interleaved({'product': lambda a=a, b=b: a @ b}, 1)['product'][0] for _ in range(5))
        rate = max(rate, 2 * n**3 / seconds)
        if seconds > 0.05:
            break
    return rate
