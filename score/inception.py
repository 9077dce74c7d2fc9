"""The FID Inception: the TensorFlow graph of 2015-12-05 as mseitzer/pytorch-fid ported it to torchvision's blocks."""

from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torchvision.models.inception import (
    BasicConv2d,
    Inception3,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

from .files import ScoreError, file_sha256, load_torch
from .images import eight_bit, rgb, unit_range
from .statistics import exact_device

FEATURE_DIM, NUM_CLASSES, INPUT_SIZE = 2048, 1008, 299
WEIGHTS_SHA256 = '6726825d'  # the digest's first digits, as in the file's name
WEIGHTS_NAME = f'pt_inception-2015-12-05-{WEIGHTS_SHA256}.pth'
WEIGHTS_URL = f'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS_NAME}'


def tensorflow_bilinear(x, size):
    """out[i] = x[l] + (x[l + 1] - x[l]) (s - l), s = i * n / size, l = floor(s): TF1's resize_bilinear.

    Corners are asymmetric (source 0 is target 0) and the last row and column repeat past the edge. Columns go
    first and s is float32, as in TensorFlow's kernel, so that the result is TensorFlow's to the last bit.

    x: float32 [N, C, H, W]. Returns [N, C, size, size].
    """
    for dim in (3, 2):
        n = x.shape[dim]
        source = torch.arange(size, dtype=torch.float32, device=x.device) * (n / size)
        lower = source.long()
        weight = (source - lower).view(-1, *[1] * (3 - dim))
        low = x.index_select(dim, lower)
        high = x.index_select(dim, (lower + 1).clamp(max=n - 1))
        x = low + (high - low) * weight
    return x


def pytorch_input(images):
    """2 resize(x) - 1, half-pixel bilinear, no antialiasing: the input of pytorch-fid and pytorch-ddpm.

    images: uint8 or float in [0, 1], [N, 1 or 3, H, W]. Returns float32 [N, 3, 299, 299] in [-1, 1].
    """
    x = rgb(unit_range(images))
    return 2 * F.interpolate(x, size=(INPUT_SIZE, INPUT_SIZE), mode='bilinear', align_corners=False) - 1


def tf_input(images):
    """(resize(x) - 128) / 128, TF1's bilinear on 8-bit images: the input of the official code and torch-fidelity.

    images: uint8 [N, 1 or 3, H, W]; floats in [0, 1] are rounded to 8 bits, which is what the protocol scores.
    Returns float32 [N, 3, 299, 299] in [-1, 1).
    """
    return (tensorflow_bilinear(rgb(eight_bit(images)).float(), INPUT_SIZE) - 128) / 128


PROTOCOLS = {'pytorch': pytorch_input, 'tf': tf_input}


def average_pool(x):
    """3x3 mean over the pixels that exist: TensorFlow leaves the padding out of the average."""
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


def max_pool(x):
    return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)


class FIDInceptionA(InceptionA):
    def _forward(self, x):
        return [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(average_pool(x)),
        ]


class FIDInceptionC(InceptionC):
    def _forward(self, x):
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(average_pool(x)),
        ]


class FIDInceptionE(InceptionE):
    pool = staticmethod(average_pool)

    def _forward(self, x):
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        ]


class FIDInception(Inception3):
    """Inception v3 (arXiv:1512.00567) with the 2015-12-05 graph's pooling: `head(net(x))` gives features and logits.

    forward: [N, 3, 299, 299] in [-1, 1] -> maps [N, 2048, 8, 8]; head: maps -> features [N, 2048], logits [N, 1008].
    """

    def __init__(self):
        blocks = [BasicConv2d, FIDInceptionA, InceptionB, FIDInceptionC, InceptionD, FIDInceptionE, InceptionAux]
        super().__init__(num_classes=NUM_CLASSES, aux_logits=False, inception_blocks=blocks, init_weights=False)
        self.Mixed_7c.pool = max_pool  # the published graph pools its last block so, and its scores rest on that

    def forward(self, x):
        *layers, _avgpool, _dropout, _fc = self.children()  # torchvision registers its layers in the order they run
        for layer in layers:
            x = layer(x)
        return x  # [N, 2048, 8, 8]

    def head(self, maps):
        """features = mean over space; logits = W features, without fc's bias, as the Inception Score is defined on.

        The logits are float64: a matrix product that no global TF32 setting touches.
        """
        features = self.avgpool(maps).flatten(1)  # [N, 2048]
        exact = exact_device(maps.device)
        return features, features.to(exact).double() @ self.fc.weight.to(exact).double().T


def weights_file(path=None):
    """The weights' file: `path`, else torch's hub cache, into which they are downloaded once.

    Raises ScoreError, saying where to get the file and where to put it, where there is none and no way to get one.
    """
    if path is not None:
        file = Path(path).expanduser()
        if not file.is_file():
            raise ScoreError(f'{file}: no such file; get the Inception weights from {WEIGHTS_URL} and put them there')
        return file
    file = Path(torch.hub.get_dir(), 'checkpoints', WEIGHTS_NAME)
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # To a temporary name, hashed, then renamed; removed on any error.
            torch.hub.download_url_to_file(WEIGHTS_URL, str(file), hash_prefix=WEIGHTS_SHA256)
        except (URLError, OSError, RuntimeError) as error:
            raise ScoreError(
                f'no Inception weights ({error}): get {WEIGHTS_URL} elsewhere and put it at {file}, or give its path'
            ) from None
    return file


def load_inception(path=None, sha256=WEIGHTS_SHA256):
    """The FID Inception with its weights, in eval mode on the CPU, and the SHA-256 of their file.

    path: a file of the standard weights; None: torch's hub cache, downloaded on first use.
    sha256: what the file's digest must begin with; '' admits any weights of the same layout.
    Raises ScoreError for a missing, damaged or different file.
    """
    file = weights_file(path)
    digest = file_sha256(file)
    if not digest.startswith(sha256):
        raise ScoreError(
            f'{file}: sha256 begins with {digest[:8]}, not {sha256}: truncated, or not the published weights; '
            f'replace it by {WEIGHTS_URL}'
        )
    state = load_torch(file)
    with torch.device('meta'):  # no memory, no time and no draw from the global generator for weights to be replaced
        network = FIDInception()
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = ' '.join(str(error).split())[:160]
        raise ScoreError(f"{file}: not the FID Inception's state dict ({reason}); get {WEIGHTS_URL}") from None
    return network.float().eval().requires_grad_(False), digest
