"""Declare every flag once, with its role, and decide which values a checkpoint fixes or suggests.

A config holds the values of all flags, and what only the data decides: `channels`, `class_names` and `moments`.
"""

from collections import ChainMap
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

from dataset import DATASETS, FITS
from model import ARCHS
from process.losses import LOSSES, T_SAMPLERS
from process.parameterisations import PARAMETERISATIONS
from process.schedules import SCHEDULES, SPACINGS
from process.solvers import SOLVERS, VAR_TYPES, learns_variance
from run.build import NETWORKS
from run.errors import UsageError, usage
from run.trackers import TRACKERS
from score import ALIASES, FEATURE_NETS, METRICS, PROTOCOLS, USUAL


class Flag(NamedTuple):
    """A flag of the command line. Its type is the type of its default: bool, int, float, str, list of int or, with
    choices, list of them. With is_size it is an int, or a list of the height and width if they differ.

    choices: a registry; its keys at the time of parsing are the choices. In a list, a key whose value is a list stands
    for the keys in that. low, high: the smallest and largest value. key: the name in a config, if it differs. before:
    the value for checkpoints older than the flag.
    """

    role: str
    name: str
    default: Any
    help: str
    choices: Any = None
    low: float | None = None
    high: float | None = None
    key: str | None = None
    before: Any = None
    is_size: bool = False

    @property
    def config_key(self):
        """Return the name of the flag's value in a config."""
        return self.key or self.name

    def word(self, value):
        """Return the word of a command line, or the line of a flagfile, that gives the flag a value."""
        if isinstance(self.default, bool):
            return f'--{"" if value else "no"}{self.name}'
        text = ('x' if self.is_size else ',').join(map(str, value)) if isinstance(value, list) else value
        return f'--{self.name}={text}'


class Group(NamedTuple):
    """Flags under one heading of --help. The group moves up if the command line has one of its verbs."""

    heading: str
    verbs: tuple
    flags: list


# The role of a flag decides what a checkpoint does with its value.
# network, process: it fixes the value, since the weights mean nothing without it. sampler, data, score, suggested: it
# suggests the value, and a flag that the user gives overrides it. labels, edit, action, run: it ignores the value. A
# folder of samples belongs to one network, process, sampler and labels, and one of edits to the edit flags too; the
# records of scores keep sampler and labels.
ROLES = 'action', 'network', 'process', 'sampler', 'labels', 'edit', 'data', 'score', 'suggested', 'run'
action, network, process, sampler, labels, edit, data, score, suggested, run = (partial(Flag, role) for role in ROLES)

# How --preview_steps and --eval_sample_steps draw. docs/sampling.md has the measurements.
FEW_STEPS = {'order': 2, 'corrector': False, 'eta': 1.0, 'spacing': 'auto'}

GROUPS = [
    Group('What to do', (), [
        action('train', False, 'train to --total_steps, going on from the checkpoint in --logdir if there is one'),
        action('sample', False, 'draw --num_images images from a checkpoint'),
        action('eval', False, 'FID, IS and KID, or what --metrics names, of a checkpoint or of --images'),
        action('edit', None, 'complete, vary, enlarge or colour --images by a checkpoint', ()),
        action('figure', None, 'draw one picture of the diffusion of a checkpoint', ()),  # main.py has the choices
        action('nll', False, 'the variational bound of a checkpoint in bits/dim'),
        action('import_ckpt', '', 'make a run in --logdir of this file or folder, hf:OWNER/NAME, or published name'),
        action('export', None, 'write the model of a checkpoint to --out, for other programs', ()),
        action('stats', False, 'build the statistics of the data set that --eval compares with'),
    ]),
    Group('Network', ('train', 'import_ckpt'), [
        network('net', 'unet', 'the network: context_unet is small, point_mlp is for 2-D points', NETWORKS),
        network('arch', 'pytorch_ddpm', 'details of the U-Net: those of pytorch-ddpm or of the authors', ARCHS),
        network('ch', 128, 'channels of the first level', low=1),
        network('ch_mult', [1, 2, 2, 2], "each level's multiple of --ch"),
        network('attn', [1], 'levels with attention, counted from 0; the middle always has it'),
        network('head_dim', 0, 'channels of each head of attention, 0 for a single head', low=0, before=0),
        network('num_res_blocks', 2, 'residual blocks of each level', low=1),
        network('img_size', 32, 'height and width of the images, or HEIGHTxWIDTH such as 32x48', is_size=True),
        network('num_classes', 0, 'number of labels with --cond, 0 for as many as the data set has', low=0),
        suggested('dropout', 0.1, 'dropout rate in residual blocks', low=0, high=1),
    ]),
    Group('Diffusion', ('train', 'import_ckpt'), [
        process('schedule', 'linear', 'how beta goes from --beta_1 to --beta_T', SCHEDULES),
        process('beta_1', 1e-4, 'first beta'),
        process('beta_T', 0.02, 'last beta'),
        process('T', 1000, 'number of diffusion steps', low=1),
        process('mean_type', 'epsilon', 'what the network predicts', PARAMETERISATIONS),
    ]),
    Group('Sampler', ('sample', 'figure', 'eval', 'nll', 'export'), [
        sampler('sample_steps', 0, 'number of sampling steps, 0 for all T', low=0),
        sampler(
            'spacing',
            'auto',
            'which timesteps --sample_steps takes; auto: leading, and trailing above --order=1',
            ChainMap(SPACINGS, {'auto': None}),
        ),
        sampler('eta', 1.0, '1 for ancestral sampling, 0 for DDIM', low=0, high=1),
        sampler('order', 1, 'predictions that a step is made of; 2: DPM-Solver++, 3: UniPC', SOLVERS, before=1),
        sampler('corrector', False, "each prediction also corrects the step before, as UniPC's", before=False),
        sampler('timesteps', [], 'the timesteps themselves, in place of --sample_steps and --spacing', before=[]),
        sampler('eps_scale', 1.0, 'divides the predicted epsilon; 1.005 or so can help few steps', before=1.0),
        sampler('var_type', 'fixedlarge', 'variance of a step at --eta=1; the network gives learned ones', VAR_TYPES),
        sampler('clip_denoised', False, 'clip the predicted x_0 to [-1, 1] at every sampling step'),
        sampler(
            'prior',
            'standard',
            "x_T: N(0, I), or with the data's moments if --T ends short of noise",
            ('standard', 'data'),
        ),
        sampler(
            'noise',
            'torch',
            'generator of the noise of --seed; philox: the same numbers on every device and in a browser',
            (),
            before='torch',
        ),  # main.py has the choices
    ]),
    Group('Labels', ('train', 'sample', 'figure'), [
        labels('labels', 'all', 'classes to draw in turn, by name or number, such as cat,dog or 0,1,2'),
        labels('guidance', 1.0, 'weight of the label: 1 conditional, 0 unconditional, more for guidance'),
        labels('guide_by', '', 'weaker checkpoint that --guidance leads away from, in place of no label', before=''),
        labels(
            'guidance_interval',
            '',
            'LOW,HIGH: guide only if LOW < sigma <= HIGH, sigma = sqrt(1 / alphas_bar - 1); by default always',
            before='',
        ),
        run('cond', False, "train on the data set's labels"),
        run('p_uncond', 0.1, 'probability of leaving out a label in training', low=0, high=1),
        run('p_uncond_schedule', 'constant', 'linear: from 1 down to --p_uncond', ('constant', 'linear')),
    ]),
    Group('Drawing from a checkpoint', ('sample', 'figure', 'eval', 'nll', 'export'), [
        run('ckpt', '', 'checkpoint, or folder with a ckpt.pt, to use instead of the one in --logdir'),
        run('weights', 'ema', 'averaged weights or the last ones', ('ema', 'net')),
        run('num_images', None, 'number of images to draw, by default 100, or 50,000 for --eval to score', low=1),
        run('sample_batch_size', 128, 'number of images drawn at once, 0 for as many as fit the device', low=0),
        run('out', '', 'where to write; by default samples/, edits/, figures/ or the export beside the checkpoint'),
        run('push', '', 'OWNER/NAME on the Hugging Face Hub that --export=diffusers also goes to'),
        run('license', 'unknown', 'license on the card of an exported model, an identifier such as mit'),
        run('between', 'states', 'what --figure=interpolate mixes: noised images, or their codes', ('states', 'codes')),
        run('figure_t', 0, 'number of noisings before the mixing of --figure=interpolate, 0 for half of --T', low=0),
    ]),
    Group('Editing', ('edit',), [
        edit(
            'mask',
            '',
            'what --edit=inpaint draws anew: half, box, box:LEFT,TOP,RIGHT,BOTTOM in pixels, lines, random:SHARE, or '
            'the white of a black and white PNG, or of one for each image in a folder or zip',
        ),
        edit('factor', 4, 'width of a result of --edit=upscale, in widths of its source', low=2),
        edit('strength', 0.4, 'share of --T that --edit=vary noises an image by', low=0, high=1),
        edit('variants', 1, 'number of results of each image', low=1),
        edit('resample', 10, 'times that inpaint, upscale and colorize take each --jump steps; 1: no way back', low=1),
        edit('jump', 10, 'number of steps that --resample goes back by', low=1),
    ]),
    Group('Data', ('train', 'stats'), [
        data(
            'dataset',
            'cifar10',
            f'one of {", ".join(DATASETS)}, or a folder, zip, parquet, npz or npy of images, or hf:OWNER/NAME',
        ),
        data('test_dataset', '', 'the same for the test split, if --dataset is no name and has no such split'),
        data('data_dir', './data', 'folder of the named data sets'),
        data(
            'channels', 'auto', '1: grey, 3: colour, auto: grey if all are', ('auto', '1', '3'), key='image_channels'
        ),
        data('fit', 'crop', 'how images get the shape of --img_size; pad: in --background', FITS, before='crop'),
        data('background', 'white', 'colour behind transparent images', ('white', 'black')),
        run('random_flip', True, 'mirror images with probability 1/2'),
        run('num_workers', 4, 'worker processes for data sets too large to keep on the device', low=0),
        run('loader_timeout', 300.0, 'seconds to wait for a batch of those processes, 0 for ever', low=0),
    ]),
    Group('Training', ('train',), [
        run('loss', 'mse', 'kl: the variational bound; hybrid: mse, and the bound for the variance', LOSSES),
        run('min_snr_gamma', 5.0, "largest signal-to-noise ratio by which --loss=min_snr weights x_0's error"),
        run('t_sampler', 'uniform', 'how t is drawn; loss_aware: more often if its loss is large', T_SAMPLERS),
        run('antithetic_t', False, 'half of each batch at t, the other half at T - 1 - t'),
        run('lr', 2e-4, 'learning rate', low=0),
        run('lr_schedule', 'constant', 'learning rate after the warm-up', ('constant', 'cosine')),
        run('warmup', 5000, 'number of steps of linear warm-up', low=0),
        run('grad_clip', 1.0, 'largest global norm of the gradient, 0 for any', low=0),
        run('total_steps', 800000, 'number of training steps', low=1),
        run('batch_size', 128, 'number of images in a training step', low=1),
        run('grad_accum', 1, 'parts that a batch is computed in, to save memory', low=1),
        run('ema_decay', 0.9999, 'decay of the averaged weights', low=0, high=1),
        run('parallel', False, 'share the work with the other processes that torchrun starts'),
        run('seed', 0, 'random seed', low=0, high=2**64 - 1),
        run(
            'precision',
            'auto',
            'auto: bf16 if the hardware computes in it, fp32 for scores; bf16: scores too, shifting FID by about -0.8%',
            ('auto', 'bf16', 'fp32'),
        ),
        run('compile', 'auto', 'torch.compile; auto: if a run is long enough to gain', ('auto', 'on', 'off')),
        run('device', 'auto', 'cpu, cuda, cuda:1, mps, xpu ...; auto: the accelerator of this machine, if any'),
    ]),
    Group('Logging and previews', ('train',), [
        run('logdir', './logs/DDPM_CIFAR10_EPS', 'folder of the run: checkpoints, previews, TensorBoard, flags'),
        run('track', ['tensorboard'], 'trackers that show the run, such as tensorboard,wandb', TRACKERS),
        run('sample_size', 64, 'number of images in a preview', low=1),
        run('sample_step', 1000, 'training steps between previews, 0 for none', low=0),
        run('preview_steps', 20, 'sampling steps of a preview, by order 2; 0: as --sample_steps says', low=0),
        run('save_step', 5000, 'training steps between checkpoints, 0 for one at the end alone', low=0),
        run('log_step', 50, 'training steps whose mean is one point of a tracker', low=1),
        run('save_minutes', 0.0, 'minutes between checkpoints, beside --save_step; 0 for none', low=0),
        run('keep_every', 0, 'steps between checkpoints kept for good as ckpt-<step>.pt, 0 for none', low=0),
    ]),
    Group('Evaluation', ('eval', 'stats', 'nll'), [
        score('feature_net', 'inception', 'network of features: classifier if images are not natural', FEATURE_NETS),
        score('metrics', list(USUAL), 'what --eval computes, such as fid,kid', ChainMap(ALIASES, METRICS)),
        score('fid_protocol', 'pytorch', "Inception's input: that of pytorch-fid, or torch-fidelity's", PROTOCOLS),
        run('inception_weights', '', 'file of the FID Inception; by default downloaded once'),
        run('dinov2_weights', '', 'file of DINOv2 ViT-L/14; by default downloaded once, 1.2 GB'),
        run('split', None, 'split of the data: by default train to compare with, test for --nll', ('train', 'test')),
        run('nll_steps', 0, 'terms of the bound that --nll computes for each image, 0 for all', low=0),
        run('fid_cache', '', 'npz of statistics or images to compare with; by default stats/<dataset>.<split>.npz'),
        run('images', '', 'images to --edit, or to score in place of a model: a folder, zip or npz, or statistics'),
        run('eval_step', 0, 'training steps between evaluations, drawn in logdir/eval.png; 0 for none', low=0),
        run('keep_best', '', 'figure such as FID whose best --eval_step is kept as ckpt.best.pt'),
        run('eval_sample_steps', 0, 'their sampling steps, by order 2; 0: as --sample_steps says', low=0),
        run('fid_use_torch', False, 'the linear algebra of FID on the GPU'),
    ]),
]  # fmt: skip


def declared():
    """Return every `Flag`, in the order of --help."""
    return [flag for group in GROUPS for flag in group.flags]


def keys(*roles):
    """Return the config keys of the flags with these roles."""
    return tuple(flag.config_key for flag in declared() if flag.role in roles)


def words(values, keys):
    """Return the words of a command line that give flags these values, in the order of --help. None has no word.

    values: {config key: value}. keys: the config keys of the flags.
    """
    return [
        flag.word(values[flag.config_key])
        for flag in declared()
        if flag.config_key in keys and values[flag.config_key] is not None
    ]


def fixed_keys():
    """Return the keys that decide what the weights mean. A checkpoint is always used with its own values of these."""
    return (*keys('network', 'process'), 'channels')


def recorded_keys():
    """Return the keys that a record of scores keeps."""
    return keys('sampler', 'labels')


def drawn_keys():
    """Return the keys that decide, with the weights, which images --sample draws."""
    return (*fixed_keys(), *keys('sampler', 'labels'), 'seed')


def sampler_keys(timesteps):
    """Return the keys of the sampler flags that one command line may have: --timesteps is in place of two others."""
    left_out = ('sample_steps', 'spacing') if timesteps else ('timesteps',)
    return [key for key in keys('sampler') if key not in left_out]


def replace(config, **changes):
    """Return a copy of a config with some values changed."""
    return SimpleNamespace(**{**vars(config), **changes})


def size_text(img_size):
    """Return a size as --img_size takes it: 32, or 8x16 for the height 8 and the width 16, [8, 16]."""
    return 'x'.join(map(str, img_size)) if isinstance(img_size, list | tuple) else str(img_size)


def complete(stored):
    """Return a dict of stored config values, filled in with `Flag.before` for flags that did not exist yet."""
    return {**{flag.config_key: flag.before for flag in declared() if flag.before is not None}, **stored}


def disagreements(config, stored, origins=None):
    """Return one phrase for each key of `fixed_keys` in which a config and the stored one of a checkpoint differ.

    Compares var_type too if either learns its variance. origins: {name: the flagfile that sets it}, for the phrase.
    """
    files = {key: f' in {path}' for key, path in (origins or {}).items() if path}
    stored = _complete_checkpoint(stored)
    learned = any(learns_variance(side.get('var_type', 'fixedlarge')) for side in (vars(config), stored))

    def text(values, key):
        return size_text(values[key]) if key == 'img_size' else values[key]

    return [
        f'--{key}={text(vars(config), key)}{files.get(key, "")} (trained with {text(stored, key)})'
        for key in (*fixed_keys(), *(['var_type'] if learned else []))
        if key in stored and stored[key] != getattr(config, key)
    ]


def _complete_checkpoint(stored):
    return complete(stored) if 'T' in stored else stored  # pytorch-ddpm stores no config: the flags decide


@usage()
def adopt(config, stored, given):
    """Return the config to use a checkpoint with.

    It takes the network and the process of the checkpoint, and its sampler, data and score flags unless `given` has
    them. config: from the flags. stored: the checkpoint's, as a dict. given: config keys of the flags that the user
    set; if a dict, {key: the flagfile that sets it, or ''}.

    Raises UsageError if a given flag contradicts the checkpoint's network.
    """
    stored = _complete_checkpoint(stored)
    explicit = SimpleNamespace(**{key: value for key, value in vars(config).items() if key in given})
    if getattr(explicit, 'image_channels', 'auto') != 'auto':
        explicit.channels = int(explicit.image_channels)
    origins = given if isinstance(given, dict) else {}
    wrong = disagreements(SimpleNamespace(**{**stored, **vars(explicit)}), stored, origins)
    if wrong:
        remedy = 'leave the flag out'
        if any(origins.values()):
            remedy += ', or the flagfile: --logdir alone is enough'
        raise UsageError(f'the checkpoint is of another network than {", ".join(wrong)}: {remedy}')
    adopted = {key: stored[key] for key in (*fixed_keys(), 'moments') if key in stored}
    adopted['class_names'] = stored.get('class_names') if stored.get('num_classes') else []
    suggested = set(keys('sampler', 'data', 'score', 'suggested'))
    if 'order' in given and config.order != stored.get('order'):
        suggested.remove('spacing')  # which depends on the order
    adopted |= {key: stored[key] for key in suggested if key in stored and key not in given}
    return settle_timesteps(replace(config, **adopted), given)


@usage()
def settle_timesteps(config, given):
    """Return the config with sample_steps counted from --timesteps, or without timesteps if the user asks for others.

    config: its timesteps may come from a flag, a flagfile or a checkpoint. given: as in `adopt`.

    Raises UsageError if the command line has both kinds of flags, or the timesteps are out of order.
    """
    if not config.timesteps:
        return config
    origins = given if isinstance(given, dict) else dict.fromkeys(given, '')
    typed = [f'--{key}' for key in ('sample_steps', 'spacing') if origins.get(key) == '']
    if typed and origins.get('timesteps') != '':
        return replace(config, timesteps=[])
    if typed:
        raise ValueError(f'--timesteps takes the place of {" and ".join(typed)}: leave one of them out')
    rising = sorted(set(config.timesteps))
    if config.timesteps not in (rising, rising[::-1]):
        raise ValueError('--timesteps must fall, as 999,500,0 do, or rise, and name no timestep twice')
    return replace(config, sample_steps=len(rising))


def in_few_steps(config, steps):
    """Return the config of a sampler that draws about as well in few steps, by order 2; steps = 0 changes nothing."""
    if not 0 < steps < (config.sample_steps or config.T):
        return config
    return replace(config, **{**FEW_STEPS, 'order': min(2, steps)}, sample_steps=steps, timesteps=[])
