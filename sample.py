"""Drawing from a checkpoint, in batches: images to PNG files, one npz and a grid; points to an npz and a figure.

Image i is a function of (seed, i): its noise comes from the generator of its block of 64 images, whatever the batch.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import build
import checkpoint
import distributed
import picture
from inference import Inference

BLOCK = 64  # images a generator draws the noise of: one each is too slow on a GPU


class Noise:
    """z ~ N(0, I) [B, *shape] for the images of `indices`, each call the next draw of each image's own sequence."""

    def __init__(self, seed, indices, shape, device):
        blocks = sorted({i // BLOCK for i in indices})
        self.generators = [torch.Generator(device).manual_seed(build.derive_seed('noise', seed, b)) for b in blocks]
        self.rows = torch.tensor([blocks.index(i // BLOCK) * BLOCK + i % BLOCK for i in indices], device=device)
        self.shape = (BLOCK, *shape)
        self.device = device

    def __call__(self, x=None):
        drawn = [torch.randn(self.shape, generator=generator, device=self.device) for generator in self.generators]
        return torch.cat(drawn)[self.rows]


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
        model.compile()
    if len(sampler.timesteps) < config.sample_steps:
        left = len(sampler.timesteps)
        logging.info('--spacing=%s: %d of --sample_steps=%d are left', config.spacing, left, config.sample_steps)
    total, what = len(chunks) * len(sampler.timesteps), 'points' if build.of_points(config) else 'images'
    with tqdm(total=total, desc=f'sampling {len(indices)} {what}', unit='step') as bar:
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
    """A multiple of 64 images that uses most of the GPU's memory, up to 1024; 64 on a CPU, where more is no faster."""
    device = build.device(config)
    if device.type == 'cpu':
        return BLOCK
    noise = Noise(0, range(BLOCK), build.shape(config), device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    next(sampler.trajectory(noise(), build.labels(config, range(BLOCK)), noise=noise))
    each = (torch.cuda.max_memory_allocated() - before) / BLOCK
    return max(BLOCK, min(1024, int(0.7 * torch.cuda.mem_get_info()[0] / each) // BLOCK * BLOCK))


def folder(config):
    """Where the checkpoint lies."""
    if os.path.isdir(config.ckpt):
        return config.ckpt
    return os.path.dirname(config.ckpt) if config.ckpt else config.logdir


def restore(config, given):
    """The config that a checkpoint was trained with (see `build.adopt`), its network in eval mode, and its step.

    Raises FileNotFoundError or CheckpointError where it cannot be read, ValueError where given flags contradict it.
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
    build.chosen_labels(config)
    if config.prior == 'data' and config.moments is None:
        raise ValueError('--prior=data needs a checkpoint trained with it')
    with torch.device('meta'):  # before anything of a size that a damaged file made up is allocated
        checkpoint.check_weights(build.network(config).state_dict(), weights, path)
    net = build.network(config)
    net.load_state_dict(weights)
    return config, net.eval().to(build.device(config)), state.get('step')


def sample(config, net, interrupted=lambda: False):
    """Draw --num_images to --out, by default samples/ beside the checkpoint.

    Images: 000000.png..., samples.npz (arr_0, uint8 [N, H, W, C]) and grid.png; those already there from the same
    weights, seed and sampler are kept, so that an interrupted call continues. Points: points.npz (points, float32
    [N, 2], and labels where there are some) and figure.png, q(x_t) above p(x_t) at ten times.

    config, net: of `restore`. Raises FileExistsError where --out holds other samples; DataError for points whose data
    set cannot be read.
    """
    out = config.out or os.path.join(folder(config), 'samples')
    (_sample_points if build.of_points(config) else _sample_images)(config, net, out, interrupted)


def _sample_points(config, net, out, interrupted):
    if distributed.rank():  # quick, and wanted in one piece
        return
    names = ('points.npz', 'figure.png')
    _claim(out, _fingerprint(config, net), names)
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
    with replacing(os.path.join(out, names[0])) as temporary, open(temporary, 'wb') as file:
        np.savez(file, **arrays)
    rows = [[seen[0] for seen in film.frames.values()] for film in (q, p)]
    save(os.path.join(out, names[1]), picture.plot(rows, [f't = {t}' for t in q.frames], ['q', 'p']))
    print(f'{config.num_images} points in {out}: points.npz, figure.png')


def _sample_images(config, net, out, interrupted):
    names = [f'{i:06d}.png' for i in range(config.num_images)]
    with distributed.main_first():
        if not distributed.rank():
            _claim(out, _fingerprint(config, net), names)
    paths = [os.path.join(out, name) for name in names]
    pending = distributed.from_main([i for i, path in enumerate(paths) if not os.path.exists(path)])
    with ThreadPoolExecutor(1) as writer:  # of a batch, while the next is drawn
        written = writer.submit(_write, [], [])
        for chunk, x_0 in draw(config, net, pending[distributed.share(len(pending))], interrupted):
            images = picture.to_uint8(x_0).permute(0, 2, 3, 1).cpu().numpy()
            written.result()
            written = writer.submit(_write, [paths[i] for i in chunk], images)
        written.result()
    if distributed.any_rank(interrupted()) or distributed.rank():
        return
    _pack(os.path.join(out, 'samples.npz'), paths, (config.img_size, config.img_size, config.channels))
    shown = np.stack([np.array(Image.open(path)).reshape(config.img_size, config.img_size, -1) for path in paths[:256]])
    save(os.path.join(out, 'grid.png'), picture.grid(torch.from_numpy(shown).permute(0, 3, 1, 2)))
    print(f'{config.num_images} images in {out}: 000000.png..., samples.npz, grid.png')


def _write(paths, images):
    for path, image in zip(paths, images, strict=True):
        save(path, Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image))


def _fingerprint(config, net):
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    used = {key: getattr(config, key) for key in (*build.NETWORK_KEYS, *build.SAMPLER_KEYS, *build.LABEL_KEYS, 'seed')}
    return {'weights': digest.hexdigest(), **used}


def _claim(out, fingerprint, names):
    os.makedirs(out, exist_ok=True)
    record = os.path.join(out, 'samples.json')
    found = {name for name in os.listdir(out) if name.endswith(('.png', '.npz'))} - {'grid.png', 'samples.npz'}
    if found:
        try:
            with open(record) as file:
                before = json.load(file)
        except (OSError, ValueError):
            before = {}
        changed = [key for key in fingerprint if before.get(key) != fingerprint[key]]
        surplus = found - set(names)
        if changed or surplus:
            why = f'of other {", ".join(changed)}' if changed else f'beyond the {len(names)} asked for'
            raise FileExistsError(f'{out} already holds samples {why}: choose another --out or empty it')
    with replacing(record) as temporary, open(temporary, 'w') as file:
        json.dump(fingerprint, file)


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
