"""Seconds and bytes of candidates for the same work, taken in turn in one process."""

import statistics
import time

import torch


def synchronize():
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(candidates, repeats):
    """{name: (median seconds, median ratio to the first, peak bytes)} of {name: function}.

    Each round calls every function once, and a ratio is of two calls of one round, so that what slows the machine for a
    while slows both. The first two rounds, in which things are compiled and allocated, do not count.
    """
    seconds, peaks = {name: [] for name in candidates}, {}
    for repeat in range(repeats + 2):
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
    return {
        name: (
            statistics.median(values),
            statistics.median(a / b for a, b in zip(first, values, strict=True)),
            peaks[name],
        )
        for name, values in seconds.items()
    }


def peak_rate(device, n=4096):
    """Floating-point operations a second of the fastest of 20 large bf16 matrix products: what the device can do."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return max(2 * n**3 / interleaved({'product': lambda: a @ b}, 1)['product'][0] for _ in range(20))
