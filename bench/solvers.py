"""Score a trained run by every solver in few steps: python -m bench.solvers [--seeds=3] [flags of main.py]

For each solver and number of network calls it prints the FID, the mean over the seeds, as --eval computes it, and the
seconds of the drawing and scoring. It writes solvers.png, a line for each solver, and solvers.json to the run's folder.
As with --eval, each FID is a line of eval.txt there too.
For example: python -m bench.solvers --flagfile config/DIGITS.txt --split=test --num_images=1438
"""

import argparse
import contextlib
import io
import json
import os
import sys
from statistics import mean, stdev

import main as flags
from evaluate import evaluate
from run.config import replace
from run.restore import restore, run_folder

CALLS = 5, 10, 20, 50
# name -> order, corrector and eta. Those of WHOLE also take all T steps.
SOLVERS = {
    'ancestral': (1, False, 1.0),
    'DDIM': (1, False, 0.0),
    '2M': (2, False, 0.0),
    'SDE-2M': (2, False, 1.0),
    'UniPC-3': (3, True, 0.0),
}
WHOLE = 'ancestral', 'DDIM'


def measure(config, net, step, seeds):
    """Yield (solver, network calls, FIDs of the seeds, seconds of the last)."""
    for name, (order, corrector, eta) in SOLVERS.items():
        for calls in (*CALLS, *([config.T] if name in WHOLE else [])):
            chosen = {'order': order, 'corrector': corrector, 'eta': eta}
            chosen |= {'sample_steps': calls, 'spacing': 'auto', 'timesteps': []}
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                records = [
                    evaluate(replace(config, **chosen, seed=seed, metrics=['fid']), net, step) for seed in range(seeds)
                ]
            fids = [next(value for key, value in record.items() if key.startswith('FID')) for record in records]
            yield name, calls, fids, records[-1]['seconds']


def draw(rows, path):
    """Draw FID against network calls, both on a logarithmic axis, with the range of the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=100, layout='constrained')
    axes = figure.add_subplot()
    for name in dict.fromkeys(row['solver'] for row in rows):
        own = [row for row in rows if row['solver'] == name]
        calls = [row['calls'] for row in own]
        axes.plot(calls, [mean(row['FID']) for row in own], marker='o', markersize=4, label=name)
        axes.fill_between(calls, *zip(*((min(row['FID']), max(row['FID'])) for row in own), strict=True), alpha=0.15)
    ticks = sorted({row['calls'] for row in rows})
    axes.set(xscale='log', yscale='log', xlabel='network calls', ylabel='FID', xticks=ticks, xticklabels=ticks)
    axes.minorticks_off()
    axes.set_yticks(levels := [3, 4, 5, 7, 10, 20, 50], levels)
    axes.set_ylim(0.9 * min(min(row['FID']) for row in rows), 1.1 * max(max(row['FID']) for row in rows))
    axes.legend()
    figure.savefig(path)


def main(argv):
    """Measure, print a row as soon as it is there, and write the picture and the figures."""
    parser = argparse.ArgumentParser(prog='python -m bench.solvers', add_help=False, allow_abbrev=False)
    parser.add_argument('--seeds', type=int, default=3)
    options, others = parser.parse_known_args(argv)
    flags.parse_flags(['bench', *others])
    config, given = flags.configuration()
    config, net, step = restore(config, given)
    rows = []
    print(f'{"":10s} {"calls":>5s} {"FID":>7s} {"+-":>6s} {"s":>6s}')
    for name, calls, fids, seconds in measure(config, net, step, options.seeds):
        rows.append({'solver': name, 'calls': calls, 'FID': fids, 'seconds': seconds})
        print(
            f'{name:10s} {calls:5d} {mean(fids):7.3f} {stdev(fids) if len(fids) > 1 else 0:6.3f} {seconds:6.1f}',
            flush=True,
        )
        draw(rows, os.path.join(run_folder(config), 'solvers.png'))
        with open(os.path.join(run_folder(config), 'solvers.json'), 'w') as file:
            json.dump(rows, file, indent=1)


if __name__ == '__main__':
    main(sys.argv[1:])
