"""Denoising diffusion probabilistic models from the command line.

python main.py --flagfile config/CIFAR10.txt --train     trains, or goes on where it stopped
python main.py --flagfile config/CIFAR10.txt --sample    draws images from its checkpoint
python main.py --flagfile config/CIFAR10.txt --eval      reports its FID, IS and KID
python main.py --flagfile config/CIFAR10.txt --nll       reports its bits/dim
python main.py --flagfile config/CIFAR10.txt --figure=progressive    draws the way from noise to images
python main.py --import_ckpt ema_cifar10 --logdir logs/ema_cifar10   makes a run of a published checkpoint
python main.py --export=diffusers --logdir logs/ema_cifar10          hands a run's model to others
"""

import contextlib
import errno
import logging
import os
import signal
import sys
import time
import warnings
from types import SimpleNamespace

import torch
from absl import app, flags

import evaluate
import figure
import interop
import nll
import reference
import sample
import train
from dataset import DATASETS, DataError
from diffusion import PARAMETERISATIONS, VAR_TYPES
from model import ARCHS
from process.losses import LOSSES, T_SAMPLERS
from process.schedules import SCHEDULES, SPACINGS
from run import build, commandline, distributed, events
from run.checkpoint import CheckpointError
from run.errors import OutOfMemory, UsageError, memory, usage
from score import FEATURE_NETS, PROTOCOLS, ScoreError, full_fp32

FLAGS = flags.FLAGS
ORIGINS = {}  # name of a flag -> the flagfile it comes from
SECTIONS = {}  # number of flags above it -> a heading of --help


class IntListFlag(flags.MultiFlag):
    """--ch_mult=1 --ch_mult=2 (pytorch-ddpm's form), --ch_mult=1,2, and --attn= for the empty list."""

    def parse(self, arguments):
        super().parse([part for part in arguments.split(',') if part])
        self.present += 1

    def _serialize(self, value):
        return super()._serialize(value) if value else f'--{self.name}='


def _int_list(name, default, help):
    flags.DEFINE_flag(IntListFlag(flags.IntegerParser(lower_bound=0), flags.ArgumentSerializer(), name, default, help))


def _section(heading):
    SECTIONS[len(own_flags())] = heading


def own_flags():
    """The flags below, without absl's."""
    return FLAGS.get_flags_for_module(sys.modules[__name__])


_section('What to do')
flags.DEFINE_bool('train', False, 'train to --total_steps, going on from the checkpoint in --logdir if there is one')
flags.DEFINE_bool('sample', False, 'draw --num_images images from a checkpoint')
flags.DEFINE_bool('eval', False, 'FID, IS and KID of a checkpoint, or of --images')
flags.DEFINE_enum('figure', None, list(figure.FIGURES), 'draw one picture of the diffusion of a checkpoint')
flags.DEFINE_bool('nll', False, 'the variational bound of a checkpoint in bits/dim')
flags.DEFINE_string(
    'import_ckpt', '', 'begin a run in --logdir with the weights of this file, folder or published name'
)
flags.DEFINE_enum('export', None, list(interop.EXPORTS), 'write the model of a checkpoint to --out, for other programs')
flags.DEFINE_bool('stats', False, 'build the statistics of the data set that --eval compares with')
_section('Network')
flags.DEFINE_enum('net', 'unet', list(build.NETWORKS), 'the network: context_unet is small, point_mlp for 2-D points')
flags.DEFINE_enum('arch', 'pytorch_ddpm', list(ARCHS), 'details of the network: those of pytorch-ddpm or the authors')
flags.DEFINE_integer('ch', 128, 'channels of the first level', lower_bound=1)
_int_list('ch_mult', [1, 2, 2, 2], "each level's multiple of --ch")
_int_list('attn', [1], 'levels with attention, counted from 0; the middle always has it')
flags.DEFINE_integer('head_dim', 0, 'channels of each head of attention, 0 for a single head', lower_bound=0)
flags.DEFINE_integer('num_res_blocks', 2, 'residual blocks of each level', lower_bound=1)
flags.DEFINE_float('dropout', 0.1, 'dropout rate in residual blocks', lower_bound=0, upper_bound=1)
_section('Diffusion')
flags.DEFINE_enum('schedule', 'linear', list(SCHEDULES), 'how beta goes from --beta_1 to --beta_T')
flags.DEFINE_float('beta_1', 1e-4, 'first beta')
flags.DEFINE_float('beta_T', 0.02, 'last beta')
flags.DEFINE_integer('T', 1000, 'diffusion steps', lower_bound=1)
flags.DEFINE_enum('mean_type', 'epsilon', list(PARAMETERISATIONS), 'what the network predicts')
flags.DEFINE_enum(
    'var_type', 'fixedlarge', list(VAR_TYPES), "variance of a sampling step at --eta=1; learned ones are the network's"
)
flags.DEFINE_integer('sample_steps', 0, 'sampling steps, 0 for all T', lower_bound=0)
flags.DEFINE_enum('spacing', 'leading', list(SPACINGS), 'which timesteps --sample_steps takes')
flags.DEFINE_float('eta', 1.0, '1 for ancestral sampling, 0 for DDIM', lower_bound=0, upper_bound=1)
flags.DEFINE_enum(
    'prior', 'standard', ['standard', 'data'], "x_T: N(0, I), or with the data's moments where --T ends short of noise"
)
flags.DEFINE_bool('clip_denoised', False, 'clip the predicted x_0 to [-1, 1] at every sampling step')
_section('Labels')
flags.DEFINE_bool('cond', False, "train on the data set's labels")
flags.DEFINE_integer('num_classes', 0, 'of labels with --cond, 0 for as many as the data set has', lower_bound=0)
flags.DEFINE_float('p_uncond', 0.1, 'probability of leaving out a label in training', lower_bound=0, upper_bound=1)
flags.DEFINE_enum('p_uncond_schedule', 'constant', ['constant', 'linear'], 'linear: from 1 down to --p_uncond')
flags.DEFINE_string('labels', 'all', 'classes to draw in turn, by name or number, such as cat,dog or 0,1,2')
flags.DEFINE_float('guidance', 1.0, 'weight of the label: 1 conditional, 0 unconditional, more for guidance')
_section('Data')
flags.DEFINE_string('dataset', 'cifar10', f'one of {", ".join(DATASETS)}, or a folder or zip of images')
flags.DEFINE_string('test_dataset', '', 'the test split, where --dataset is a folder or zip: another one')
flags.DEFINE_string('data_dir', './data', 'where named data sets are kept')
flags.DEFINE_integer('img_size', 32, 'image size', lower_bound=1)
flags.DEFINE_enum('channels', 'auto', ['auto', '1', '3'], '1: grey, 3: colour, auto: grey if all images are')
flags.DEFINE_enum('background', 'white', ['white', 'black'], 'the colour behind transparent images')
flags.DEFINE_bool('random_flip', True, 'mirror images with probability 1/2')
flags.DEFINE_integer('num_workers', 4, 'worker processes for data sets too large to keep on the device', lower_bound=0)
flags.DEFINE_float('loader_timeout', 300, 'seconds to wait for a batch of those processes, 0 for any', lower_bound=0)
_section('Training')
flags.DEFINE_enum('loss', 'mse', list(LOSSES), 'kl: the variational bound; hybrid: mse, and the bound for the variance')
flags.DEFINE_float('min_snr_gamma', 5.0, "largest signal-to-noise ratio by which --loss=min_snr weights x_0's error")
flags.DEFINE_enum(
    't_sampler', 'uniform', list(T_SAMPLERS), 'how timesteps are drawn; loss_aware: where losses are large'
)
flags.DEFINE_bool('antithetic_t', False, 'half of each batch at t, the other half at T - 1 - t')
flags.DEFINE_float('lr', 2e-4, 'learning rate', lower_bound=0)
flags.DEFINE_enum('lr_schedule', 'constant', ['constant', 'cosine'], 'learning rate after the warm-up')
flags.DEFINE_integer('warmup', 5000, 'steps of linear warm-up', lower_bound=0)
flags.DEFINE_float('grad_clip', 1.0, 'largest global norm of the gradient, 0 for any', lower_bound=0)
flags.DEFINE_integer('total_steps', 800000, 'training steps', lower_bound=1)
flags.DEFINE_integer('batch_size', 128, 'images of a training step', lower_bound=1)
flags.DEFINE_integer('grad_accum', 1, 'parts a batch is computed in, to save memory', lower_bound=1)
flags.DEFINE_float('ema_decay', 0.9999, 'decay of the averaged weights', lower_bound=0, upper_bound=1)
flags.DEFINE_bool('parallel', False, 'share the work with the other processes that torchrun starts')
flags.DEFINE_integer('seed', 0, 'of everything random', lower_bound=0)
flags.DEFINE_enum(
    'precision',
    'auto',
    ['auto', 'bf16', 'fp32'],
    'auto: bf16 where the hardware computes in it, fp32 for scores; bf16: scores too, shifting FID by about -0.8%',
)
flags.DEFINE_enum('compile', 'auto', ['auto', 'on', 'off'], 'torch.compile; auto: where a run is long enough to gain')
flags.DEFINE_string('device', 'auto', 'cpu, cuda, cuda:1, mps, xpu ...; auto: the accelerator of this machine, if any')
_section('Logging and previews')
flags.DEFINE_string('logdir', './logs/DDPM_CIFAR10_EPS', 'folder of the run: checkpoints, previews, TensorBoard, flags')
flags.DEFINE_integer('sample_size', 64, 'images of a preview', lower_bound=1)
flags.DEFINE_integer('sample_step', 1000, 'training steps between previews, 0 for none', lower_bound=0)
flags.DEFINE_integer('save_step', 5000, 'steps between checkpoints, 0 for one at the end alone', lower_bound=0)
flags.DEFINE_integer('log_step', 50, 'training steps whose mean is one point of TensorBoard', lower_bound=1)
flags.DEFINE_float('save_minutes', 0, 'minutes between checkpoints, beside --save_step; 0 for none', lower_bound=0)
flags.DEFINE_integer(
    'keep_every', 0, 'steps between checkpoints kept for good as ckpt-<step>.pt, 0 for none', lower_bound=0
)
_section('Sampling from a checkpoint')
flags.DEFINE_string('ckpt', '', 'checkpoint, or folder with a ckpt.pt, to use instead of the one in --logdir')
flags.DEFINE_enum('weights', 'ema', ['ema', 'net'], 'averaged weights or the last ones')
flags.DEFINE_integer('num_images', None, 'images to draw, by default 100, or 50,000 for --eval to score', lower_bound=1)
flags.DEFINE_integer('sample_batch_size', 128, 'images drawn at once, 0 for as many as fit the device', lower_bound=0)
flags.DEFINE_string('out', '', 'where to write; by default samples/, figures/ or the export beside the checkpoint')
flags.DEFINE_string('license', 'unknown', 'of an exported model, for its card: an identifier such as mit')
flags.DEFINE_integer(
    'figure_t', 0, 'noisings before the mixing of --figure=interpolate, 0 for half of --T', lower_bound=0
)
_section('Evaluation')
flags.DEFINE_enum('feature_net', 'inception', list(FEATURE_NETS), 'features: classifier where images are not natural')
flags.DEFINE_enum('fid_protocol', 'pytorch', list(PROTOCOLS), "Inception's input: pytorch-fid's or torch-fidelity's")
flags.DEFINE_string('inception_weights', '', 'file of the FID Inception; by default downloaded once')
flags.DEFINE_enum('split', None, ['train', 'test'], 'of the data set: by default train to compare with, test for --nll')
flags.DEFINE_integer('nll_steps', 0, 'terms of the bound that --nll computes for each image, 0 for all', lower_bound=0)
flags.DEFINE_string(
    'fid_cache', '', 'statistics to compare with; by default stats/<dataset>.<split>.npz, built if missing'
)
flags.DEFINE_string('images', '', 'score this folder, zip or npz of images, or npz of statistics, in place of a model')
flags.DEFINE_integer('eval_step', 0, 'training steps between evaluations, 0 for none', lower_bound=0)
flags.DEFINE_bool('fid_use_torch', False, 'the linear algebra of FID on the GPU')

MODES = ('import_ckpt', 'train', 'sample', 'figure', 'nll', 'stats', 'eval', 'export')


def parse_flags(argv):
    """absl's parsing, but the command line replaces what flagfiles say; exits with 2 on an error, 0 after --help."""
    known = {flag.name for flag in own_flags()}
    if {'-h', '-help', '--help', '--helpshort'} & set(argv[1:]):
        print(_help())
        sys.exit(0)
    ORIGINS.clear()
    with exits(2, UsageError):
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
            said = ' '.join(f'--{name}' for name in names)
            print(f'main.py: {said} in {path} is left out: the command line says what to do', file=sys.stderr)
    return parsed


def _help():
    every, starts = own_flags(), sorted(SECTIONS)
    ends = [*starts[1:], len(every)]
    sections = {SECTIONS[i]: every[i:j] for i, j in zip(starts, ends, strict=True)}
    return commandline.help_text(__doc__, sections)


@contextlib.contextmanager
def exits(status, *errors):
    """Turn errors of these kinds into one line and an exit status."""
    try:
        yield
    except errors as error:
        said = ' '.join(str(error).split()) + _remedy(error)
        if not distributed.rank():
            print(f'main.py: error: {said}', file=sys.stderr)
        elif status != 2:  # which rank 0 has said too
            print(f'main.py: error: rank {distributed.rank()}: {said}', file=sys.stderr)
        sys.exit(status)


def _remedy(error):
    if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ': make room and run the same command again'
    return ''


def configuration():
    """From the flags as parsed: the value of each, with what only the data decides; and those that were given.

    The latter are {name: the flagfile that says it, or '' for the command line}.
    """
    undecided = {'channels': 3, 'class_names': [], 'moments': None}
    config = SimpleNamespace(**{_key(flag): flag.value for flag in own_flags()}, **undecided)
    return config, {_key(flag): ORIGINS.get(flag.name, '') for flag in own_flags() if flag.present}


def _key(flag):
    """What a config calls a flag: `channels` is there the number that the network has."""
    return 'image_channels' if flag.name == 'channels' else flag.name


def flagfile(config):
    """The text of a flagfile for a config: how, not what to do, so that any action may be added to it."""
    settings = [flag for flag in own_flags() if flag.name not in MODES]
    for flag in settings:
        flag.value = getattr(config, _key(flag))
    return ''.join(f'{flag.serialize()}\n' for flag in settings if flag.value is not None)


class Interruption:
    """Whether SIGINT or SIGTERM has come. A second Ctrl-C ends the process at once, or a signal that comes later.

    Not every second one: a scheduler sends SIGTERM to all processes and torchrun, on its own, another to each rank.
    """

    SAME = 5.0  # seconds within which signals are taken for one

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
    """Run the modes asked for, in order. Exit status: 2 for wrong flags, 1 for a failure, 128 + n after signal n."""
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.INFO, force=True)
    warnings.showwarning = lambda message, *_: logging.warning('%s', message)
    config, given = configuration()
    interrupted = Interruption()
    failures = OSError, CheckpointError, DataError, ScoreError, FloatingPointError, OutOfMemory, distributed.LostRank
    with exits(2, UsageError), exits(1, *failures), distributed.joined():
        check(config)
        exact = build.precision(config) == torch.float32
        with full_fp32(build.device(config)) if exact else contextlib.nullcontext():
            run_modes(config, given, interrupted)
        signum = distributed.highest(interrupted.signum or 0)
    return 128 + signum if signum else 0


@usage()
def check(config):
    """Join the other processes, if there are some. Raises UsageError for flags that describe nothing to be done."""
    if config.parallel or distributed.launched() > 1:
        share_work(config)
    if config.import_ckpt and distributed.world() > 1:
        raise UsageError('--import_ckpt is for one process: train with the others after it')
    if not any(getattr(config, mode) for mode in MODES):
        raise UsageError(f'nothing to do: add {" or ".join(f"--{mode}" for mode in MODES)}')
    if not config.import_ckpt:
        build.check(config, config.train, config.train or draws(config) or bool(config.export))


def draws(config):
    """Whether a mode asked for draws or scores with the network of a checkpoint; --images and --stats do without."""
    return bool(config.sample or config.figure or config.nll or (config.eval and not config.images))


def run_modes(config, given, interrupted):
    """What main does, once all is well with the flags; what cannot be shared is rank 0's."""

    def go_on():
        return not distributed.any_rank(interrupted())

    main_rank = distributed.rank() == 0
    if config.import_ckpt:
        config = import_run(config, given)
    if config.train:
        with memory('lower --batch_size or raise --grad_accum'):
            train.train(config, flagfile(config), interrupted)
    with memory('lower --sample_batch_size'):
        if (draws(config) or config.export) and go_on():
            config, net, step = sample.restore(config, given)
        if draws(config) and go_on():
            where = config.ckpt or config.logdir
            logging.info('%s: %s weights of step %s, on %s', where, config.weights, step, build.hardware(config))
        if config.sample and go_on():
            sample.sample(config, net, interrupted)
        if config.figure and go_on() and main_rank:
            figure.figure(config, net, step, interrupted)
        if config.nll and go_on() and (record := nll.nll(config, net, step, interrupted)):
            events.note(sample.folder(config), step, events.scores_of(record))
        if config.stats and go_on() and main_rank:
            reference.build_reference(config)
        if config.eval and go_on():
            if not config.images:
                if record := evaluate.evaluate(config, net, step, interrupted):
                    events.note(sample.folder(config), step, events.scores_of(record))
            elif main_rank:
                evaluate.evaluate_images(config, given)
        if config.export and go_on() and main_rank:
            print(f'{interop.export(config, net, step)}: the {config.weights} weights of step {step}')


def share_work(config):
    """Join the processes that torchrun started. Raises ValueError, saying what to run, where that is amiss."""
    if not config.parallel:
        raise ValueError('torchrun started several processes: add --parallel for them to share the work')
    device = build.device(config)
    n = torch.accelerator.device_count() if device.type != 'cpu' and device.index is None else 1
    if distributed.launched():
        distributed.start(device)
        logging.info('sharing the work of %d processes', distributed.world())
    elif n > 1:
        raise ValueError(f'--parallel on {n} GPUs: torchrun --nproc_per_node={n} main.py ... --parallel')
    else:
        logging.info('--parallel: there is one device, which does all the work')


def import_run(config, given):
    """Begin the run of --import_ckpt; returns its config."""
    source = interop.read(config.import_ckpt)
    config = build.adopt(config, source.config, given)
    config.cond = bool(config.num_classes)
    train.begin(config, source.net, source.ema, flagfile(config))
    print(f'{config.logdir}: a run of {config.import_ckpt}, to --sample, --eval or --train with its flagfile.txt')
    return config


if __name__ == '__main__':
    app.run(main, flags_parser=parse_flags)
