"""Drawing images from a checkpoint, in batches, to PNG files, one npz and a grid.

Image i is a function of (seed, i): its noise comes from the generator of its block of 64 images, whatever the batch.
"""

import contextlib
import hashlib
import json
import math
import os
import zipfile

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.utils import make_grid
from tqdm import tqdm

import build
import checkpoint

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


def denoise(config, sampler, x_T, indices, noise, interrupted, after_step=lambda: None):
    """x_0 [B, C, H, W] in [-1, 1] of the images of `indices`, from their x_T, by their labels; None if interrupted."""
    with build.autocast(config):
        for _, x_t, _ in sampler.trajectory(x_T, build.labels(config, indices), noise=noise):
            after_step()
            if interrupted():
                return None
    return x_t.clamp(-1, 1)


def draw(config, net, indices, interrupted=lambda: False):
    """Yield (indices, x_0) a batch of --sample_batch_size: x_0 [B, C, H, W] in [-1, 1]; ends early once interrupted."""
    device = build.device(config)
    sampler = build.sampler(config, net).to(device)
    size = config.sample_batch_size
    chunks = [indices[i : i + size] for i in range(0, len(indices), size)]
    with tqdm(total=len(chunks) * len(sampler.timesteps), desc=f'sampling {len(indices)} images', unit='step') as bar:
        for chunk in chunks:
            noise = Noise(config.seed, chunk, (config.channels, config.img_size, config.img_size), device)
            x_0 = denoise(config, sampler, noise(), chunk, noise, interrupted, bar.update)
            if x_0 is None:
                return
            yield chunk, x_0


def restore(config, given):
    """The config that a checkpoint was trained with (see `build.adopt`), and its network in eval mode on the device.

    Raises FileNotFoundError or CheckpointError where it cannot be read, ValueError where given flags contradict it.
    """
    path = config.ckpt or os.path.join(config.logdir, 'ckpt.pt')
    state = checkpoint.load(path)
    kind = f'{config.weights}_model'
    if kind not in state:
        raise checkpoint.CheckpointError(f'{path} holds no {kind}: it has {", ".join(map(str, state))}')
    weights = state[kind]
    stored = state.get('config')
    if stored is None:  # pytorch-ddpm's own: the flags describe it, but for the channels, which it had no flag for
        stored = {'channels': weights['head.weight'].shape[1]} if 'head.weight' in weights else {}
    config = build.adopt(config, stored, given)
    build.check(config)
    build.labels(config, [])
    net = build.network(config)
    checkpoint.load_weights(net, weights, path)
    return config, net.eval().to(build.device(config))


def sample(config, net, interrupted=lambda: False):
    """Draw --num_images images to --out: 000000.png..., samples.npz (arr_0, uint8 [N, H, W, C]) and grid.png.

    Images already there from the same weights, seed and sampler are kept, so that an interrupted call continues.

    config, net: of `restore`. Raises FileExistsError where --out holds other samples.
    """
    out = config.out or os.path.join(os.path.dirname(config.ckpt) or config.logdir, 'samples')
    paths = [os.path.join(out, f'{i:06d}.png') for i in range(config.num_images)]
    _claim(out, _fingerprint(config, net), paths)
    pending = [i for i, path in enumerate(paths) if not os.path.exists(path)]
    for chunk, x_0 in draw(config, net, pending, interrupted):
        for i, image in zip(chunk, to_uint8(x_0).permute(0, 2, 3, 1).cpu().numpy(), strict=True):
            _save(paths[i], Image.fromarray(image.squeeze(2) if config.channels == 1 else image))
    if interrupted():
        return
    _pack(os.path.join(out, 'samples.npz'), paths, (config.img_size, config.img_size, config.channels))
    shown = np.stack([np.array(Image.open(path)).reshape(config.img_size, config.img_size, -1) for path in paths[:256]])
    _save(os.path.join(out, 'grid.png'), grid(torch.from_numpy(shown).permute(0, 3, 1, 2)))
    print(f'{config.num_images} images in {out}: 000000.png..., samples.npz, grid.png')


def _fingerprint(config, net):
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    used = {key: getattr(config, key) for key in (*build.NETWORK_KEYS, *build.SAMPLER_KEYS, *build.LABEL_KEYS, 'seed')}
    return {'weights': digest.hexdigest(), **used}


def _claim(out, fingerprint, paths):
    os.makedirs(out, exist_ok=True)
    record = os.path.join(out, 'samples.json')
    found = [name for name in os.listdir(out) if name.endswith('.png') and name != 'grid.png']
    if found:
        try:
            with open(record) as file:
                before = json.load(file)
        except (OSError, ValueError):
            before = {}
        changed = [key for key in fingerprint if before.get(key) != fingerprint[key]]
        surplus = set(found) - {os.path.basename(path) for path in paths}
        if changed or surplus:
            why = f'of other {", ".join(changed)}' if changed else f'beyond the {len(paths)} asked for'
            raise FileExistsError(f'{out} already holds images {why}: choose another --out or empty it')
    with _replacing(record) as temporary, open(temporary, 'w') as file:
        json.dump(fingerprint, file)


@contextlib.contextmanager
def _replacing(path):
    """A temporary path that becomes `path` at the end, so that no half-written file passes for a finished one."""
    temporary = f'{path}.tmp'
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _save(path, image):
    with _replacing(path) as temporary:
        image.save(temporary, format='PNG')


def _pack(path, images, shape):
    """np.savez of the images, one at a time: 50,000 of 256x256 would not fit in memory."""
    header = {'descr': '|u1', 'fortran_order': False, 'shape': (len(images), *shape)}
    with (
        _replacing(path) as temporary,
        zipfile.ZipFile(temporary, 'w') as archive,
        archive.open(zipfile.ZipInfo('arr_0.npy'), 'w', force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for image in images:
            file.write(np.asarray(Image.open(image)).tobytes())


def to_uint8(x):
    """[-1, 1] -> 0..255, rounded to the nearest as torchvision's save_image does."""
    return ((x + 1) * 127.5 + 0.5).clamp(0, 255).to(torch.uint8)


def grid(images, columns=None):
    """One picture of uint8 images [N, C, H, W], as square as can be by default; tiny ones are enlarged to be seen."""
    scale = max(1, 48 // images.shape[-1])
    images = F.interpolate(images.float(), scale_factor=scale).to(torch.uint8)
    tiled = make_grid(images, nrow=columns or math.ceil(math.sqrt(len(images))))
    return Image.fromarray(tiled.permute(1, 2, 0).cpu().numpy())
