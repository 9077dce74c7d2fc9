"""Drawing from a checkpoint, in batches: images to PNG files, one npz and a grid; points to an npz and a figure.

Image i is a function of (seed, i): its noise comes from the generator of its block of 64 images, whatever the batch.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from dataset import shown
from draw import picture
from draw.inference import Inference
from run import build, checkpoint, distributed, progress
from run.errors import UsageError, usage

BLOCK = 64  # images a generator draws the noise of: one each is too slow on a GPU
NUM_IMAGES = 100  # to draw, if nothing is said
RECORD = 'samples.json'  # in a folder of samples: what they are of
IMAGE = r'\d{6,}\.png'
LITTER = r'\.DS_Store|Thumbs\.db|desktop\.ini'  # of operating systems
OURS = rf'({IMAGE}|(grid|figure)\.png|(samples|points)\.npz|{RECORD})(\.tmp)?|{LITTER}'


class Noise:
    """z ~ N(0, I) [B, *shape] for the images of `indices`, each call the next draw of each image's own sequence.

    Drawn on the device or, if it has no generators of its own, on the CPU.
    """

    def __init__(self, seed, indices, shape, device):
        blocks = sorted({i // BLOCK for i in indices})
        try:
            self.generators = [torch.Generator(device) for _ in blocks]
        except (NotImplementedError, RuntimeError):
            self.generators = [torch.Generator() for _ in blocks]
        for block, generator in zip(blocks, self.generators, strict=True):
            generator.manual_seed(build.derive_seed('noise', seed, block))
        self.rows = torch.tensor([blocks.index(i // BLOCK) * BLOCK + i % BLOCK for i in indices], device=device)
        self.shape = (BLOCK, *shape)
        self.device = device

    def __call__(self, x=None):
        drawn = [torch.randn(self.shape, generator=each, device=each.device) for each in self.generators]
        return torch.cat(drawn).to(self.device)[self.rows]


def denoise(config, sampler, x, y, noise, interrupted, observe=lambda t, x_t, x0_hat: None, start=None):
    """x_0, the shape of x, that the sampler walks to from the state x; None if interrupted.

    x: x_T, or the state `start`. y: int64 labels [B] or None. Images come clipped to [-1, 1].
    observe: called with the noisings left, x_t, and the x0_hat predicted from it, of every state, from x to x_0.
    """
    t, x_t = sampler.states[-1] if start is None else start, x
    for s, x_s, x0_hat in sampler.trajectory(x, y, start, noise=noise):
        observe(t, x_t, x0_hat)
        if interrupted():
            return None
        t, x_t = s, x_s
    observe(0, x_t, x_t)
    return x_t if build.of_points(config) else x_t.clamp(-1, 1)


def diffuse(config, sampler, x_0, stop=None, observe=lambda t, x_t: None):
    """x_t with `stop` noisings, by default those of x_T, the shape of x_0. observe: called from x_0 on, (t, x_t)."""
    seed = build.derive_seed('diffuse', config.seed)  # not the noise of the way back
    noise = Noise(seed, range(len(x_0)), x_0.shape[1:], x_0.device)
    x_t = x_0
    observe(0, x_t)
    for t, x_t in sampler.diffuse(x_0, stop=stop or sampler.states[-1], noise=noise):
        observe(t, x_t)
    return x_t


class Film:
    """An observer of `denoise` or `diffuse`: what it sees at ten of a sampler's states, spread evenly, or at all.

    `frames`: noisings t, ascending -> what came with t, a list of tensors [N, ...].
    """

    def __init__(self, sampler):
        states = sampler.states
        picked = np.linspace(0, len(states) - 1, min(10, len(states))).round().astype(int)
        self.frames = {states[i]: None for i in picked}

    def __call__(self, t, *seen):
        if t in self.frames:
            seen = [x.cpu() for x in seen]
            before = self.frames[t]  # of earlier batches
            self.frames[t] = seen if before is None else [torch.cat(pair) for pair in zip(before, seen, strict=True)]


def draw(config, net, indices, interrupted=lambda: False, observe=lambda t, x_t, x0_hat: None):
    """Yield (indices, x_0) a batch of --sample_batch_size, x_0 as of `denoise`; ends early once interrupted."""
    device = build.device(config)
    model = Inference(net, build.precision(config))
    sampler = build.sampler(config, model).to(device)
    size = max(1, min(config.sample_batch_size or batch_that_fits(config, sampler), len(indices)))
    chunks = [indices[i : i + size] for i in range(0, len(indices), size)]
    if build.compiles(config, len(indices) * len(sampler.timesteps)):
        logging.info(build.COMPILING)
        model.compile()
    if len(sampler.timesteps) < config.sample_steps:
        left = len(sampler.timesteps)
        logging.info('--spacing=%s: %d of --sample_steps=%d are left', config.spacing, left, config.sample_steps)
    total, what = len(chunks) * len(sampler.timesteps), 'points' if build.of_points(config) else 'images'
    with progress.bar(total=total, desc=f'sampling {len(indices)} {what}', unit='step') as bar:
        for chunk in chunks:
            n = len(chunk)
            filled = [*chunk, *chunk[-1:] * (size - n if model.compiled else 0)]  # one size, compiled once

            def step(t, x_t, x0_hat, n=n):
                observe(t, x_t[:n], x0_hat[:n])
                bar.update(t > 0)

            noise = Noise(config.seed, filled, build.shape(config), device)
            y = build.labels(config, filled)
            x_0 = denoise(config, sampler, sampler.start(noise()), y, noise, interrupted, step)
            if x_0 is None:
                return
            yield chunk, x_0[:n]


def batch_that_fits(config, sampler):
    """A multiple of 64 images that uses most of a CUDA device's memory, up to 1024; elsewhere 64.

    On a CPU more is no faster, and of other devices torch does not say how much memory is free.
    """
    device = build.device(config)
    if device.type != 'cuda':
        return BLOCK
    noise = Noise(0, range(BLOCK), build.shape(config), device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    next(sampler.trajectory(noise(), build.labels(config, range(BLOCK)), noise=noise))
    each = (torch.cuda.max_memory_allocated(device) - before) / BLOCK
    return max(BLOCK, min(1024, int(0.7 * torch.cuda.mem_get_info(device)[0] / each) // BLOCK * BLOCK))


def folder(config):
    """Where the checkpoint lies."""
    if os.path.isdir(config.ckpt):
        return config.ckpt
    return os.path.dirname(config.ckpt) if config.ckpt else config.logdir


def restore(config, given):
    """The config that a checkpoint was trained with (see `build.adopt`), its network in eval mode, and its step.

    Raises FileNotFoundError or CheckpointError where it cannot be read, UsageError where given flags contradict it.
    """
    path = config.ckpt or config.logdir
    if not config.ckpt or os.path.isdir(path):
        path = os.path.join(path, 'ckpt.pt')
    beside = [os.path.join(os.path.dirname(path), name) for name in ('model_index.json', 'config.json')]
    if path.endswith('.safetensors') or (any(map(os.path.exists, beside)) and not os.path.exists(path)):
        raise FileNotFoundError(f'{config.ckpt or path} is no checkpoint of this program: {_import_it(config)}')
    state = checkpoint.load(path)
    kind = f'{config.weights}_model'
    if kind not in state:
        raise checkpoint.CheckpointError(
            f'{path} holds no {kind}, its first keys are {", ".join(map(str, list(state)[:3]))}: '
            f'if it is a state dict, {_import_it(config)}'
        )
    with checkpoint.blamed(path):
        return _restored(config, given, path, checkpoint.unwrapped(state[kind]), state)


def _import_it(config):
    return f'begin a run of it with --import_ckpt={config.ckpt or config.logdir} --logdir=NEW'


def _restored(config, given, path, weights, state):
    stored = state.get('config')
    if stored is None:  # pytorch-ddpm's own: the flags describe it, but for the channels, which it had no flag for
        stored = {'channels': weights['head.weight'].shape[1]} if 'head.weight' in weights else {}
    config = build.adopt(config, stored, given)
    build.check(config)
    with usage():
        build.chosen_labels(config)
    if config.prior == 'data' and config.moments is None:
        raise UsageError('--prior=data needs a checkpoint trained with it')
    with torch.device('meta'):  # before anything of a size that a damaged file made up is allocated
        checkpoint.check_weights(build.network(config).state_dict(), weights, path)
    net = build.network(config)
    net.load_state_dict(weights)
    _hint(config, stored, state.get('step'))
    return config, net.eval().to(build.device(config)), state.get('step')


def _hint(config, stored, step):
    """Warn of weights that draw poorly however well the run goes. stored: the config of the checkpoint."""
    left = stored.get('ema_decay', config.ema_decay) ** (step or 0)  # what the average holds of what it began with
    if config.weights == 'ema' and step and left > 0.1 and not stored.get('import_ckpt'):
        logging.warning(
            'the averaged weights of step %d are still %.0f%% those that the run began with: --weights=net may draw '
            'better until it has trained for longer, or with a lower --ema_decay',
            step,
            100 * left,
        )
    always_labelled = stored.get('p_uncond', 0.1) == 0 and stored.get('p_uncond_schedule', 'constant') == 'constant'
    if config.num_classes and always_labelled and (config.guidance != 1 or config.figure == 'guidance'):
        logging.warning(
            'guidance needs a network trained without labels too, and this one has not been (--p_uncond=0): what it '
            'draws at --guidance other than 1 means nothing'
        )


def sample(config, net, interrupted=lambda: False):
    """Draw --num_images, by default 100, to --out, by default samples/ beside the checkpoint.

    Images: 000000.png..., samples.npz (arr_0, uint8 [N, H, W, C]) and grid.png; those already there from the same
    weights, seed and sampler are kept, so that an interrupted call continues. Points: points.npz (points, float32
    [N, 2], and labels where there are some) and figure.png, q(x_t) above p(x_t) at ten times.

    config, net: of `restore`. What an earlier call drew by other weights or settings moves to `<out>.prev`. Raises
    FileExistsError if --out holds anything else; DataError for points whose data set cannot be read.
    """
    out = config.out or os.path.join(folder(config), 'samples')
    config = SimpleNamespace(**{**vars(config), 'num_images': config.num_images or NUM_IMAGES})
    if config.num_classes:
        names = build.label_names(config)
        logging.info('labels in turn: %s', shown([names[y] for y in build.chosen_labels(config)]))
    (_sample_points if build.of_points(config) else _sample_images)(config, net, out, interrupted)


def _sample_points(config, net, out, interrupted):
    if distributed.rank():  # quick, and wanted in one piece
        return
    _claim(out, _fingerprint(config, net))
    sampler = build.sampler(config, None)
    p, q = Film(sampler), Film(sampler)
    indices = list(range(config.num_images))
    points = [x_0.cpu() for _, x_0 in draw(config, net, indices, interrupted, p)]
    if interrupted():
        return
    diffuse(config, sampler, build.some(config, build.dataset(config), config.num_images).cpu(), observe=q)
    arrays = {'points': torch.cat(points).numpy()}
    if config.num_classes:
        arrays['labels'] = build.labels(config, indices).cpu().numpy()
    with replacing(os.path.join(out, 'points.npz')) as temporary, open(temporary, 'wb') as file:
        np.savez(file, **arrays)
    rows = [[seen[0] for seen in film.frames.values()] for film in (q, p)]
    titles, what = [f'$t = {t}$' for t in q.frames], ['forward $q$', 'reverse $p$']
    save(os.path.join(out, 'figure.png'), picture.plot(rows, titles, what, arrows=['->', '<-']))
    print(f'{config.num_images} points in {out}: points.npz, figure.png')


def _sample_images(config, net, out, interrupted):
    with distributed.main_first():
        if not distributed.rank():
            _claim(out, _fingerprint(config, net))
    paths = [os.path.join(out, f'{i:06d}.png') for i in range(config.num_images)]
    pending = distributed.from_main([i for i, path in enumerate(paths) if not os.path.exists(path)])
    if pending:
        with ThreadPoolExecutor(1) as writer:  # of a batch, while the next is drawn
            written = writer.submit(_write, [], [])
            for chunk, x_0 in draw(config, net, pending[distributed.share(len(pending))], interrupted):
                images = picture.to_uint8(x_0).permute(0, 2, 3, 1).cpu().numpy()
                written.result()
                written = writer.submit(_write, [paths[i] for i in chunk], images)
            written.result()
    stopped = distributed.any_rank(interrupted())
    if distributed.rank():
        return
    if stopped:
        there = sum(map(os.path.exists, paths))
        print(f'stopped: {there} of {len(paths)} images in {out}; the same command draws the others')
        return
    _pack(os.path.join(out, 'samples.npz'), paths, (config.img_size, config.img_size, config.channels))
    shown = np.stack([np.array(Image.open(path)).reshape(config.img_size, config.img_size, -1) for path in paths[:256]])
    save(os.path.join(out, 'grid.png'), picture.grid(torch.from_numpy(shown).permute(0, 3, 1, 2)))
    more = sum(bool(re.fullmatch(IMAGE, name)) for name in os.listdir(out)) - len(paths)
    drawn = '' if pending else ', all drawn before'
    print(f'{len(paths)} images in {out}{drawn}: 000000.png..., samples.npz, grid.png')
    if more:
        print(f'  {more} more of an earlier call lie there, which samples.npz and grid.png leave out')


def _write(paths, images):
    for path, image in zip(paths, images, strict=True):
        save(path, Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image))


def _fingerprint(config, net):
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    used = {key: getattr(config, key) for key in (*build.NETWORK_KEYS, *build.SAMPLER_KEYS, *build.LABEL_KEYS, 'seed')}
    return {'weights': digest.hexdigest(), **used}


def _claim(out, fingerprint):
    """Make the folder `out` ready for samples of this fingerprint; those it holds of another move to `<out>.prev`.

    Raises FileExistsError, having touched nothing, if that would move or mingle with what `sample` did not make.
    """
    before, foreign = _held(out)
    before = {**build.UNSAID, **before}
    changed = [key for key in fingerprint if before.get(key) != fingerprint[key]]
    samples = os.path.isdir(out) and any(name.endswith(('.png', '.npz')) for name in os.listdir(out))
    if samples and changed:
        if foreign:
            raise FileExistsError(f'{out} holds {foreign}, which --sample did not make: choose another --out')
        _set_aside(out, changed)
    elif foreign.endswith(('.png', '.npz')):
        raise FileExistsError(f'{out} holds {foreign}, which --sample did not make: choose another --out or move it')
    os.makedirs(out, exist_ok=True)
    with replacing(os.path.join(out, RECORD)) as temporary, open(temporary, 'w') as file:
        json.dump(fingerprint, file)


def _held(out):
    """The fingerprint of the samples in a folder, {} for none, and the name of something there that is not ours, or ''.

    Without a fingerprint nothing is ours.
    """
    try:
        with open(os.path.join(out, RECORD)) as file:
            before = json.load(file)
        ours = OURS if 'weights' in before else LITTER
    except (OSError, ValueError, TypeError):
        before, ours = {}, LITTER
    entries = sorted(os.scandir(out), key=lambda entry: entry.name) if os.path.isdir(out) else []
    files = [entry.name for entry in entries if entry.is_file(follow_symlinks=False) and re.fullmatch(ours, entry.name)]
    foreign = [entry.name for entry in entries if entry.name not in files]
    pictures = [name for name in foreign if name.endswith(('.png', '.npz'))]
    return before, (pictures + foreign + [''])[0]


def _set_aside(out, changed):
    """Rename a folder of ours to `<out>.prev`, in place of one there if that is ours as well."""
    folder = os.path.realpath(out)
    kept = f'{folder}.prev'
    if os.path.commonpath([folder, os.getcwd()]) == folder:
        raise FileExistsError(f'{out} is the working folder and holds other samples: choose another --out')
    if os.path.lexists(kept):
        before, foreign = _held(kept)
        if foreign or not before:
            raise FileExistsError(
                f'{out} holds other samples, and {kept} is in the way: move it or choose another --out'
            )
        shutil.rmtree(kept)
    os.rename(folder, kept)
    shown = f'{os.path.normpath(out)}.prev' if os.path.abspath(out) == folder else kept
    print(f'{out} held samples of other {", ".join(changed)}: they are in {shown} now')


@contextlib.contextmanager
def replacing(path):
    """A temporary path that becomes `path` at the end, so that no file or folder half-written passes for whole."""
    temporary = f'{path}.tmp'
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if os.path.isdir(temporary):
            shutil.rmtree(temporary)
        elif os.path.exists(temporary):
            os.remove(temporary)


def save(path, image):
    """Write a PIL image as PNG, whole or not at all."""
    with replacing(path) as temporary:
        image.save(temporary, format='PNG')


def _pack(path, images, shape):
    """np.savez of the images, one at a time: 50,000 of 256x256 would not fit in memory."""
    header = {'descr': '|u1', 'fortran_order': False, 'shape': (len(images), *shape)}
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, 'w') as archive,
        archive.open(zipfile.ZipInfo('arr_0.npy'), 'w', force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for image in images:
            file.write(np.asarray(Image.open(image)).tobytes())
