"""Shows the progress of long tasks.

A function with a `progress` argument calls it as tqdm is called: progress(iterable, desc=..., total=..., unit=...).
"""

from functools import partial

from tqdm import tqdm

silent = partial(tqdm, disable=True)
