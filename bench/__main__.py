"""Time our code against what people would otherwise use, in turn in one process: python -m bench [TASK...]

A ratio is the median over paired calls, relative to the first candidate of the task. TFLOP/s counts the matrix products
and convolutions of the network; a training step counts as three forward calls. The share is relative to a large matrix
product on the same device, in bf16 if the device computes in bf16, else in fp32. GPU memory is the peak of a call.
"""

import argparse
import json
import os
import platform
import subprocess

import torch

import main as flags
from bench.tasks import TASKS, precisions
from bench.timing import interleaved, peak_rate
from run import compiling, hardware

REPEATS, SECONDS = 5, 30  # defaults: the rounds that count, and the seconds after which none begins


def parse():
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m bench', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('tasks', nargs='*', metavar='TASK', help=f'one of {", ".join(TASKS)}; all by default')
    parser.add_argument('--flagfile', default='config/CIFAR10.txt', help='flagfile of the network to time')
    parser.add_argument('--batch_size', type=int, default=None, help='128 on a GPU, 8 on a CPU by default')
    parser.add_argument(
        '--repeats', type=int, help=f'rounds to time; {REPEATS} by default, fewer if a task takes over {SECONDS} s'
    )
    parser.add_argument('--reference', help='a checkout of w86763777/pytorch-ddpm to time as well')
    parser.add_argument('--compile', action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument('--json', help='write the figures to this file too')
    options = parser.parse_args()
    if unknown := set(options.tasks) - set(TASKS):
        parser.error(f'no task {", ".join(unknown)}: there are {", ".join(TASKS)}')
    if options.reference and not os.path.exists(os.path.join(options.reference, 'model.py')):
        parser.error(f'--reference={options.reference} is no checkout of w86763777/pytorch-ddpm: it has no model.py')
    if options.batch_size is None:
        options.batch_size = 128 if torch.cuda.is_available() else 8
    return options


def machine():
    """Describe the machine in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'{torch.get_num_threads()} threads of {processor()} ({torch.backends.cpu.get_cpu_capability()})'


def processor():
    """Return the name of the CPU, as precisely as the system tells it."""
    try:
        with open('/proc/cpuinfo') as file:  # Linux
            return next(line.partition(':')[2].strip() for line in file if line.startswith('model name'))
    except (OSError, StopIteration):
        pass
    try:
        command = ['sysctl', '-n', 'machdep.cpu.brand_string']  # a Mac
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return platform.processor() or platform.machine()


def line(row):
    """Format a row of the table. A figure that the row lacks is left blank."""
    formats = {'ms': '9.1f', 'ratio': '7.2f', 'images_per_second': '9.1f', 'tflops': '8.2f', 'share': '7.1%'}
    cells = [f'{row[key]:{form}}' if key in row else ' ' * int(form.split('.')[0]) for key, form in formats.items()]
    cells[1] += 'x'
    return ' '.join([f'{row["candidate"]:24s}', *cells, f'{row["peak_gib"]:6.2f}' if 'peak_gib' in row else ''])


def main():
    """Time the chosen tasks and print a table for each."""
    options = parse()
    flags.parse_flags(['bench', f'--flagfile={options.flagfile}', '--logdir=', '--sample_size=1'])
    config, _ = flags.configuration()
    device = hardware.device(config)
    best = precisions(config)[-1]
    ceiling = peak_rate(device, torch.bfloat16 if best == 'bf16' else torch.float32)
    per_image = {'sample': compiling.flops(config), 'train': 3 * compiling.flops(config)}
    about = {
        'machine': machine(),
        'torch': torch.__version__,
        'flagfile': options.flagfile,
        'batch_size': options.batch_size,
        'repeats': options.repeats or f'up to {REPEATS}',
        f'{best}_matmul_tflops': ceiling / 1e12,
    }
    print(', '.join(f'{key} {value}' for key, value in about.items()))
    print(f'{per_image["sample"] / 1e9:.2f} GFLOP per image forward, {per_image["train"] / 1e9:.2f} in a training step')
    rows = []
    for name in options.tasks or TASKS:
        task, passes = TASKS[name]
        print(f'\n{name}: {" ".join(task.__doc__.split())}')
        print(f'{"":24s} {"ms":>9s} {"ratio":>8s} {"images/s":>9s} {"TFLOP/s":>8s} {"share":>7s} {"GiB":>6s}')
        rounds = (options.repeats,) if options.repeats else (REPEATS, SECONDS)
        for candidate, (seconds, ratio, peak) in interleaved(task(config, options), *rounds).items():
            row = {'task': name, 'candidate': candidate, 'ms': seconds / max(passes, 1) * 1e3, 'ratio': ratio}
            if passes:
                row['images_per_second'] = options.batch_size * passes / seconds
            if name in per_image:
                row['tflops'] = row['images_per_second'] * per_image[name] / 1e12
                row['share'] = row['tflops'] / (ceiling / 1e12)
            if peak is not None:
                row['peak_gib'] = peak / 2**30
            rows.append(row)
            print(line(row))
        if name == 'sample':
            best = max(row['images_per_second'] for row in rows if row['task'] == name)
            print(f'50,000 images in {config.T} steps at the best rate: {50_000 * config.T / best / 3600:.2f} hours')
    if options.json:
        with open(options.json, 'w') as file:
            json.dump({**about, 'rows': rows}, file, indent=1)


if __name__ == '__main__':
    main()
