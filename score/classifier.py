"""Trains a small CNN on the labels of a data set, to have features for images that are not natural ones."""

import json
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from .files import ScoreError, Unscorable, atomic_write, file_digest, load_torch
from .images import unit_range
from .source import from_text

FEATURE_DIM = 128
silent = partial(tqdm, disable=True)  # the progress of a task that shows none


class Classifier(nn.Module):
    """Computes softmax(W2 relu(norm(W1 conv(x)))): two 3x3 convolutions, 128 features, one logit per class.

    forward: [N, C, H, W] in [-1, 1], any size from 8x8 -> maps [N, 64, 4, 4]; head: maps -> features [N, 128], logits.
    """

    def __init__(self, channels, num_classes):
        super().__init__()
        self.body = nn.Sequential(  # ReLU comes after the pool: the maps are the same, at a quarter of the work
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(16, 64, 3, padding=1),
            nn.AdaptiveMaxPool2d(4),
            nn.ReLU(),
        )
        self.penultimate = nn.Linear(64 * 4 * 4, FEATURE_DIM)
        self.fc = nn.Linear(FEATURE_DIM, num_classes)

    def forward(self, x):
        return self.body(x)

    def head(self, maps):
        # Each image's features get unit variance, because FID and above all KID's cubic kernel depend on their scale.
        features = F.layer_norm(self.penultimate(maps.flatten(1)), (FEATURE_DIM,)).relu()  # [N, 128]
        return features, self.fc(features)


def classifier_input(images, shape):
    """Computes 2 x - 1. Raises Unscorable if the images do not have the shape that the classifier was trained on."""
    if tuple(images.shape[1:]) != tuple(shape):
        raise Unscorable(f'the classifier was trained on images {tuple(shape)}, got {tuple(images.shape[1:])}')
    return 2 * unit_range(images) - 1


def accuracy(network, images, labels, batch_size=512):
    """Computes the fraction of images whose largest logit is that of their label."""
    device = next(network.parameters()).device
    hits = 0
    with torch.inference_mode():
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            _, logits = network.head(network(classifier_input(x, x.shape[1:]).to(device)))
            hits += (logits.argmax(1).cpu() == y).sum().item()
    return hits / len(images)


def train_classifier(images, labels, *, seed=0, steps=1000, batch_size=128, device='cpu', progress=silent):
    """Minimises E[-log softmax(f(x))_y] with Adam (arXiv:1412.6980) and one cycle of the learning rate, up to 3e-3.

    images: uint8 [N, C, H, W]. labels: int64 [N], from 0. progress: what shows the progress, called as tqdm is. On the
    CPU the same seed gives the same network, and the global generators are not used.

    Raises Unscorable for images and labels that do not go together.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or min(images.shape[2:]) < 8:
        raise Unscorable(f'the classifier trains on uint8 [N, C, H >= 8, W >= 8], got {images.dtype} {images.shape}')
    if not 0 < len(images) == len(labels) or labels.min() < 0:
        raise Unscorable(f'{len(images)} images need as many labels from 0 up, got {len(labels)}')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(images.shape[1], int(labels.max()) + 1).to(device)
    order = torch.Generator().manual_seed(seed)
    optim = torch.optim.Adam(network.parameters())
    sched = torch.optim.lr_scheduler.OneCycleLR(optim, max_lr=3e-3, total_steps=steps)
    for _ in progress(range(steps), desc='training the classifier', total=steps, unit='step'):
        batch = torch.randint(len(images), (batch_size,), generator=order)
        _, logits = network.head(network(classifier_input(images[batch], images.shape[1:]).to(device)))
        loss = F.cross_entropy(logits, labels[batch].to(device).long())
        optim.zero_grad()
        loss.backward()
        optim.step()
        sched.step()
    return network.eval().requires_grad_(False)


def cache_classifier(path, data, *, source=None, steps=1000, device='cpu', progress=silent):
    """Trains a classifier and writes it to `path` with its image shape, number of classes, test accuracy and source.

    data: (images, labels, test_images, test_labels), uint8 [N, C, H, W] and int64 [N]. source: a dict that says what
    the images are, for `check_source`, or None.
    """
    images, labels, test_images, test_labels = data
    network = train_classifier(images, labels, steps=steps, device=device, progress=progress)
    saved = {
        'state': network.cpu().state_dict(),
        'shape': list(images.shape[1:]),
        'num_classes': network.fc.out_features,
        'test_accuracy': accuracy(network, test_images, test_labels),
        **({} if source is None else {'source': json.dumps(source)}),
    }
    with atomic_write(path) as f:
        torch.save(saved, f)


def load_classifier(path):
    """Loads a cached classifier, in eval mode on the CPU, with what was written with it and the SHA-256 of its file.

    Returns (network, {'shape', 'num_classes', 'test_accuracy', 'source'}, digest).

    Raises ScoreError if the file is missing, damaged or a different one.
    """
    saved = load_torch(path)
    try:
        info = {key: saved[key] for key in ('shape', 'num_classes', 'test_accuracy')}
        info['source'] = from_text(saved['source']) if 'source' in saved else None
        with torch.device('meta'):  # these weights are replaced: draw nothing for them from the global generator
            network = Classifier(info['shape'][0], info['num_classes'])
        network.load_state_dict(saved['state'], strict=True, assign=True)
    except (KeyError, IndexError, RuntimeError, TypeError, AttributeError, ValueError) as error:
        reason = ' '.join(str(error).split())[:160]
        raise ScoreError(f'{path}: not a cached classifier ({reason}); delete it and train it anew') from None
    return network.eval().requires_grad_(False), info, file_digest(path)
