"""Turns images into features and logits, which is all that the metrics need of a network."""

import logging
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from . import classifier, dinov2, inception
from .files import ScoreError, check_writable
from .images import check_images
from .source import StaleError, check_source


@contextmanager
def full_fp32(device):
    """Computes in float32 whatever the settings outside: without autocast and without TF32.

    TF32 has 10 bits of mantissa in place of 23. It is cuDNN's default for convolutions, and some containers make it the
    default for matrix products.
    """
    kinds = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = 'ieee'
        has_autocast = torch.amp.is_autocast_available(device.type)
        with torch.autocast(device.type, enabled=False) if has_autocast else nullcontext():
            yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


# The context in which a trunk computes. What comes after the feature maps is in float32 with either.
PRECISIONS = {'fp32': full_fp32, 'bf16': lambda device: torch.autocast(device.type, torch.bfloat16)}


@dataclass(frozen=True)
class FeatureNet:
    """Computes head(trunk(prepare(x))): images [N, C, H, W] -> features float32 [N, dim], logits [N, num_classes].

    Called with spatial=True, it returns spatial features, float32 [N, spatial_dim], as well; it has none if spatial_dim
    is 0. If the network tells no classes, num_classes is 0.

    Images are uint8 in [0, 255] or float in [0, 1]; anything else raises ValueError. `made` says how the features are
    computed. It goes into every statistics file, and is compared with what a file says.
    """

    name: str
    dim: int
    num_classes: int
    weights_hash: str
    protocol: str
    precision: str
    device: torch.device
    prepare: Callable
    trunk: Callable
    head: Callable
    test_accuracy: float | None = None
    spatial_dim: int = 0

    @torch.inference_mode()
    def __call__(self, images, spatial=False):
        x = self.prepare(check_images(images).to(self.device))
        with PRECISIONS[self.precision](self.device):
            maps, *more = self.trunk(x, spatial=True) if spatial else (self.trunk(x),)
        with full_fp32(self.device):
            return *self.head(maps.float()), *(features.float() for features in more)

    @property
    def made(self):
        return {
            'feature_net': self.name,
            'weights_hash': self.weights_hash,
            'protocol': self.protocol,
            'precision': self.precision,
        }

    def label(self, metric):
        """Names a figure: 'FID' for Inception, 'FID(classifier)' for another net, so that nobody confuses them."""
        return metric if self.name == 'inception' else f'{metric}({self.name})'


def assemble(network, precision, device, **fields):
    """Makes a FeatureNet of `network`. Raises ValueError for an unknown precision.

    The sizes of its last layer, `fc`, are those of the features and the logits, unless fields has them.
    """
    if precision not in PRECISIONS:
        raise ValueError(f'precision must be one of {sorted(PRECISIONS)}, got {precision!r}')
    device = torch.device(device)
    network = network.to(device)
    if precision == 'bf16':  # fp32 keeps the layout of the reference, because another one reorders its sums
        network = network.to(memory_format=torch.channels_last)
    if 'dim' not in fields:
        fields |= {'dim': network.fc.in_features, 'num_classes': network.fc.out_features}
    return FeatureNet(precision=precision, device=device, trunk=network, head=network.head, **fields)


def inception_net(weights=None, *, protocol='pytorch', precision='fp32', device='cpu', sha256=inception.WEIGHTS_SHA256):
    """Makes a FeatureNet of the FID Inception (arXiv:1512.00567, graph of 2015-12-05): 2048 features, 1008 logits.

    weights: the path of the standard weights, by default torch's hub cache, into which they are downloaded once.
    protocol: a key of PROTOCOLS. precision: a key of PRECISIONS. sha256: see `load_inception`.

    Raises ScoreError for unusable weights, ValueError for an unknown protocol or precision.
    """
    if protocol not in inception.PROTOCOLS:
        raise ValueError(f'protocol must be one of {sorted(inception.PROTOCOLS)}, got {protocol!r}')
    network, digest = inception.load_inception(weights, sha256)
    how = {'protocol': protocol, 'prepare': inception.PROTOCOLS[protocol]}
    if protocol == 'tf':  # sFID is published under this protocol alone
        how['spatial_dim'] = network.spatial_dim
    return assemble(network, precision, device, name='inception', weights_hash=digest, **how)


def classifier_net(weights, *, precision='fp32', device='cpu', data=None, source=None, progress=classifier.silent):
    """Makes a FeatureNet of a small CNN trained on the labels of the data set: 128 features, one logit per class.

    weights: the path of the cached network. If it is missing, or was made from other data than `source` says, it is
    trained and written there first. data: a function without arguments that gives (images, labels, test_images,
    test_labels), uint8 [N, C, H, W] and int64 [N]; it is called only for training. source: a dict that says what the
    data is, or None. progress: what shows the progress of training, called as tqdm is.

    Raises ScoreError if the file is unusable. So it does if the network must be trained and there is no data.
    """
    if why := _unusable(weights, source):
        if data is None:
            raise ScoreError(f'{weights} {why}, and there is no labelled data to train it on')
        check_writable(weights, why)
        images = data()
        logging.info('%s %s: training a classifier on %d images', weights, why, len(images[0]))
        classifier.cache_classifier(weights, images, source=source, device=device, progress=progress)
    network, info, digest = classifier.load_classifier(weights)
    if why:
        logging.info('it reads %.1f%% of %d test images as labelled', 100 * info['test_accuracy'], len(images[2]))
    # native: the images are neither resized nor requantised
    how = {'protocol': 'native', 'prepare': partial(classifier.classifier_input, shape=info['shape'])}
    accuracy = info['test_accuracy']
    return assemble(network, precision, device, name='classifier', weights_hash=digest, test_accuracy=accuracy, **how)


def dinov2_net(weights=None, *, precision='fp32', device='cpu', sha256=dinov2.WEIGHTS_SHA256):
    """Makes a FeatureNet of DINOv2 ViT-L/14: 1024 features, no classes. FID of them is FD-DINOv2 (arXiv:2306.04675).

    weights: the path of the published weights, by default torch's hub cache, into which they are downloaded once.
    precision: a key of PRECISIONS. sha256: see `load_dinov2`.

    Raises ScoreError for unusable weights or without timm, ValueError for an unknown precision.
    """
    network, digest = dinov2.load_dinov2(weights, sha256)
    how = {'protocol': 'dgm-eval', 'prepare': dinov2.dinov2_input, 'dim': network.dim, 'num_classes': 0}
    return assemble(network, precision, device, name='dinov2', weights_hash=digest, **how)


def _unusable(path, source):
    """Says why the classifier at `path` must be trained, such as 'is missing'; '' if it can be used."""
    if not Path(path).is_file():
        return 'is missing'
    try:
        check_source(path, classifier.load_classifier(path)[1]['source'], source)
    except StaleError as error:
        return f'was {error.why}'
    return ''


FEATURE_NETS = {'inception': inception_net, 'classifier': classifier_net, 'dinov2': dinov2_net}
