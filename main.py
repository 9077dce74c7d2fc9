"""Train, sample and score denoising diffusion probabilistic models from the command line.

python main.py --flagfile config/CIFAR10.txt --train     train, or resume where it stopped
python main.py --flagfile config/CIFAR10.txt --sample    draw images from its checkpoint
python main.py --flagfile config/CIFAR10.txt --eval      report its FID, IS and KID
python main.py --flagfile config/CIFAR10.txt --nll       report its bits/dim
python main.py --flagfile config/CIFAR10.txt --edit=inpaint --images=photos --mask=box    complete images
python main.py --flagfile config/CIFAR10.txt --figure=progressive    draw how noise becomes images
python main.py --import_ckpt ema_cifar10 --logdir logs/ema_cifar10   make a run from a published checkpoint
python main.py --export=diffusers --logdir logs/ema_cifar10          write a run's model for diffusers
"""

import contextlib
import difflib
import errno
import logging
import os
import re
import signal
import sys
import time
import warnings
from types import SimpleNamespace

import torch
from absl import app, flags

import edit
import evaluate
import figure
import interop
import nll
import sample
import train
from dataset import DataError
from draw.noise import NOISES
from run import checks, commandline, distributed, events, files, hardware
from run.checkpoint import CheckpointError, refusing_other_forms
from run.config import ROLES, adopt, declared, keys, settle_timesteps, words
from run.errors import OutOfMemory, UsageError, memory, usage
from run.restore import restore, run_folder
from score import ScoreError, full_fp32

FLAGS = flags.FLAGS
ORIGINS = {}  # name of a flag -> the flagfile that sets it
LARGEST = 2**31 - 1  # which an integer may be if its flag says nothing else


class IntListFlag(flags.MultiFlag):
    """A list of int: --ch_mult=1 --ch_mult=2 (pytorch-ddpm's form), --ch_mult=1,2, or --attn= for the empty list."""

    def parse(self, arguments):
        super().parse([part for part in arguments.split(',') if part])
        self.present += 1


class ChoiceParser(flags.ArgumentParser):
    """Parser of a flag that takes a key of a registry; it looks the keys up when the flag is parsed."""

    def __init__(self, registry):
        self.registry = registry

    @property
    def enum_values(self):
        """Return the keys as strings."""
        return [str(key) for key in self.registry]

    def parse(self, argument):
        """Return the key with this name. Raises ValueError if there is none."""
        for key in self.registry:
            if str(key) == str(argument):
                return key
        raise ValueError(f'value should be one of <{"|".join(self.enum_values)}>')


class NamesParser(ChoiceParser):
    """Parser of a flag that takes a list of keys of a registry, such as fid,kid. A list there stands for its keys."""

    def parse(self, argument):
        """Return the keys as a list, each once. Raises ValueError if there is no such key, and names the nearest."""
        names = argument if isinstance(argument, list) else [name.strip() for name in argument.split(',')]
        for name in names:
            if name not in self.registry:
                (near,) = difflib.get_close_matches(name, self.enum_values, n=1, cutoff=0)
                raise ValueError(f'there is no {name or "name"} among {" ".join(self.enum_values)}: is it {near}?')
        several = [self.registry[name] if isinstance(self.registry[name], list) else [name] for name in names]
        return list(dict.fromkeys(name for part in several for name in part))


class SizeParser(flags.ArgumentParser):
    """Parser of a size: 32 is 32, and so is 32x32; 32x48 is [32, 48], height and width."""

    def parse(self, argument):
        """Return an int, or a list of two that differ. Raises ValueError, saying what a size is, for anything else."""
        found = re.fullmatch(r'(\d{1,5})(?:x(\d{1,5}))?', str(argument))
        height, width = map(int, found.groups(found[1])) if found else (0, 0)
        if not height or not width:
            raise ValueError('a size is a number such as 32, or HEIGHTxWIDTH such as 32x48, in pixels from 1 to 99999')
        return height if height == width else [height, width]


def define(flag):
    """Define a `Flag` of run/config.py for absl."""
    about = flag.name, flag.default, flag.help
    if flag.is_size:
        flags.DEFINE(SizeParser(), *about)
    elif flag.choices is not None and isinstance(flag.default, list):
        flags.DEFINE(NamesParser(flag.choices), *about)
    elif flag.choices is not None:
        flags.DEFINE(ChoiceParser(CHOICES.get(flag.name, flag.choices)), *about)
    elif isinstance(flag.default, list):
        flags.DEFINE_flag(IntListFlag(flags.IntegerParser(0, LARGEST), None, *about))
    elif isinstance(flag.default, bool):
        flags.DEFINE_bool(*about)
    elif isinstance(flag.default, str):
        flags.DEFINE_string(*about)
    elif isinstance(flag.default, float):
        flags.DEFINE_float(*about, flag.low, flag.high)
    else:
        flags.DEFINE_integer(*about, flag.low, flag.high or LARGEST)


CHOICES = {
    'edit': edit.EDITS,
    'figure': figure.FIGURES,
    'export': interop.EXPORTS,
    'noise': NOISES,
}  # registries that run/ may not import
for each in declared():
    define(each)

MODES = ('import_ckpt', 'train', 'sample', 'edit', 'figure', 'nll', 'stats', 'eval', 'export')  # in this order


def own_flags():
    """Return {name: absl's flag} for the flags that run/config.py declares."""
    return {flag.name: FLAGS[flag.name] for flag in declared()}


def parse_flags(argv):
    """Parse flags with absl; the command line overrides flagfiles. Exits with 2 on an error, 0 after --help."""
    known = set(own_flags())
    if {'-h', '-help', '--help', '--helpshort'} & set(argv[1:]):
        print(commandline.help_text(__doc__, commandline.sections(argv), own_flags()))
        sys.exit(0)
    ORIGINS.clear()
    with exits(2, UsageError):
        for word in argv:
            if (text := word.encode(errors='replace').decode()) != word:
                raise UsageError(f'{text} is not in UTF-8: give what it names another name')
        try:
            words, origins, left_out = commandline.arrange(argv, known, MODES)
            ORIGINS.update(origins)
            parsed = FLAGS(words)
            if len(parsed) > 1:
                raise flags.Error(f'unexpected argument {parsed[1]}')
        except flags.Error as error:
            raise UsageError(commandline.explain(error, known, ORIGINS)) from error
    for path, names in left_out.items():
        if not distributed.rank():
            actions = ' '.join(f'--{name}' for name in names)
            print(f'main.py: {actions} in {path} is left out: the command line says what to do', file=sys.stderr)
    return parsed


@contextlib.contextmanager
def exits(status, *errors):
    """Turn errors of these kinds into one line on stderr and an exit status."""
    try:
        yield
    except errors as error:
        full = getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        message = ' '.join(str(error).split()) + ': make room and run the same command again' * full
        if not distributed.rank():
            print(f'main.py: error: {message}', file=sys.stderr)
        elif status != 2:  # rank 0 reports wrong flags for all
            print(f'main.py: error: rank {distributed.rank()}: {message}', file=sys.stderr)
        sys.exit(status)


def configuration():
    """Return (config, given): all flag values, with placeholders for what the data decides, and the flags the user set.

    given: {config key of a flag that the user set: the flagfile that sets it, or '' for the command line}.
    """
    undecided = {'channels': 3, 'class_names': [], 'moments': None}
    values = {flag.config_key: FLAGS[flag.name].value for flag in declared()}
    # bash leaves the ~ of --logdir=~/run as it is.
    values |= {key: os.path.expanduser(value) for key, value in values.items() if isinstance(value, str)}
    given = {flag.config_key: ORIGINS.get(flag.name, '') for flag in declared() if FLAGS[flag.name].present}
    return SimpleNamespace(**values, **undecided), given


def flagfile(config):
    """Return a config as the text of a flagfile. It has no actions, so that the command line can add any of them."""
    kept = keys(*(role for role in ROLES if role != 'action'))
    return ''.join(f'{word}\n' for word in words(vars(config), kept))


class Interruption:
    """A callable flag: true once SIGINT or SIGTERM has come. A second Ctrl-C, or a later signal, exits at once.

    Signals within SAME seconds count as one: a scheduler signals all processes, and torchrun each rank once more.
    """

    SAME = 5.0  # seconds within which signals count as one

    def __init__(self):
        self.signum, self.since = None, None
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self.handle)

    def handle(self, signum, frame):
        now = time.monotonic()
        if self.signum:
            if signum == self.signum == signal.SIGINT or now - self.since > self.SAME:
                os._exit(128 + signum)
            return
        self.signum, self.since = signum, now
        if not distributed.rank():
            print('\nstopping after this step; Ctrl-C once more stops at once, unsaved', file=sys.stderr)

    def __call__(self):
        return self.signum is not None


def main(argv):
    """Run the requested modes in order. Exit status: 2 for wrong flags, 1 for a failure, 128 + n after signal n."""
    if hasattr(sys.stdout, 'reconfigure'):  # a file on Windows may have no place for the name of a folder
        sys.stdout.reconfigure(errors='backslashreplace')
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.INFO, force=True)
    warnings.showwarning = lambda message, *_: logging.warning('%s', message)
    config, given = configuration()
    interrupted = Interruption()
    failures = OSError, CheckpointError, DataError, ScoreError, FloatingPointError, OutOfMemory, distributed.LostRank
    with exits(2, UsageError), exits(1, *failures), distributed.joined():
        config = settle_timesteps(config, given)
        check(config)
        exact = hardware.precision(config) == torch.float32
        with full_fp32(hardware.device(config)) if exact else contextlib.nullcontext():
            run_modes(config, given, interrupted)
        signum = distributed.highest(interrupted.signum or 0)
    return 128 + signum if signum else 0


@usage()
def check(config):
    """Join the other processes, if there are any. Raises UsageError if flags are wrong or ask for nothing."""
    if config.parallel or distributed.launched() > 1:
        share_work(config)
    if config.import_ckpt and distributed.world() > 1:
        raise UsageError('--import_ckpt is for one process: train with the others after it')
    if not any(getattr(config, mode) for mode in MODES):
        raise UsageError(f'nothing to do: add {" or ".join(f"--{mode}" for mode in MODES)}')
    interop.check_export(config)
    if not config.import_ckpt:
        checks.check(config, training=config.train, drawing=config.train)  # `restore` checks those of a checkpoint


def draws(config):
    """Return whether a requested mode draws or scores with a checkpoint's network; --stats and --images do not."""
    return bool(config.sample or config.edit or config.figure or config.nll or (config.eval and not config.images))


def run_modes(config, given, interrupted):
    """Run the requested modes, once the flags are checked. Rank 0 alone runs those that cannot be shared."""

    def go_on():
        return not distributed.any_rank(interrupted())

    main_rank = distributed.rank() == 0
    if config.import_ckpt:
        config = import_run(config, given)
    if config.train:
        with memory('lower --batch_size or raise --grad_accum'):
            train.train(config, flagfile(config), interrupted, evaluate.evaluate)
    with memory('lower --sample_batch_size'):
        if (draws(config) or config.export) and go_on():
            config, net, step = restore(config, given)
        if draws(config) and go_on():
            where = config.ckpt or config.logdir
            logging.info('%s: %s weights of step %s, on %s', where, config.weights, step, hardware.describe(config))
        if main_rank and (config.nll or (config.eval and not config.images)):
            files.check_folder(run_folder(config))
        if config.sample and go_on():
            sample.sample(config, net, interrupted)
        if config.edit and go_on():
            edit.edit(config, net, interrupted)
        if config.figure and go_on() and main_rank:
            figure.figure(config, net, step, interrupted)
        if config.nll and go_on() and (record := nll.nll(config, net, step, interrupted)):
            events.note(config, run_folder(config), step, events.scores_of(record))
        if config.stats and go_on() and main_rank:
            evaluate.build_statistics(config)
        if config.eval and go_on():
            if not config.images:
                if record := evaluate.evaluate(config, net, step, interrupted):
                    events.note(config, run_folder(config), step, events.scores_of(record))
            elif main_rank:
                evaluate.evaluate_images(config, given)
        if config.export and go_on() and main_rank:
            print(f'{interop.export(config, net, step)}: the {config.weights} weights of step {step}')


def share_work(config):
    """Join the processes that torchrun started. Raises ValueError, saying what to run, if that is not possible."""
    if not config.parallel:
        raise ValueError('torchrun started several processes: add --parallel for them to share the work')
    device = hardware.device(config)
    n = torch.accelerator.device_count() if device.type != 'cpu' and device.index is None else 1
    if distributed.launched():
        distributed.start(device)
        logging.info('sharing the work of %d processes', distributed.world())
    elif n > 1:
        raise ValueError(f'--parallel on {n} GPUs: torchrun --nproc_per_node={n} main.py ... --parallel')
    else:
        logging.info('--parallel: there is one device, which does all the work')


def import_run(config, given):
    """Create a run in --logdir from the weights of --import_ckpt, and return its config."""
    source = interop.read(config.import_ckpt)
    with refusing_other_forms(config.import_ckpt):
        config = adopt(config, source.config, given)
        config.cond = bool(config.num_classes)
        checks.check(config, training=True)
    train.begin(config, source.net, source.ema, flagfile(config))
    print(f'{config.logdir}: a run of {config.import_ckpt}; use its flagfile.txt to --sample, --eval or --train')
    return config


if __name__ == '__main__':
    app.run(main, flags_parser=parse_flags)
