"""Prepares the input of DINOv2 ViT-L/14 and loads its weights. The package timm defines the network."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from .files import ScoreError, fill, published_weights
from .images import eight_bit, rgb

ARCHITECTURE = 'vit_large_patch14_dinov2'  # timm's name
INPUT_SIZE, PATCH = 224, 14
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
WEIGHTS_SHA256 = 'd5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428'
WEIGHTS_NAME = 'dinov2_vitl14_pretrain.pth'
WEIGHTS_URL = f'https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/{WEIGHTS_NAME}'


def dinov2_input(images):
    """Computes (resize(x) / 255 - mean) / std, Pillow's bicubic on 8-bit images, as layer6ai-labs/dgm-eval does.

    images: uint8 [N, 1 or 3, H, W]. Floats in [0, 1] are rounded to 8 bits. Returns float32 [N, 3, 224, 224].
    """
    pixels = rgb(eight_bit(images)).permute(0, 2, 3, 1).cpu().numpy()
    size = INPUT_SIZE, INPUT_SIZE
    resized = np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in pixels])
    x = torch.from_numpy(resized).to(images.device).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (MEAN, STD))
    return (x - mean) / std


def resample_positions(table, side=INPUT_SIZE // PATCH):
    """Samples the embeddings of an n x n grid of patches at those of a smaller one, as DINOv2's own code does.

    Patch i lies at (i + 1/2) n / (side + 0.1) - 1/2 in the grid. The 0.1 is that of the code. It is bicubic without
    antialiasing; timm's own resampling differs.

    table: [1, 1 + n^2, d], the class token first. Returns [1, 1 + side^2, d].
    """
    n = math.isqrt(table.shape[1] - 1)
    grid = table[:, 1:].float().unflatten(1, (n, n)).permute(0, 3, 1, 2)  # [1, d, n, n]
    grid = F.interpolate(grid, scale_factor=(side + 0.1) / n, mode='bicubic')  # [1, d, side, side]
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], 1)


class DINOv2(nn.Module):
    """Computes the class token after the last norm: [N, 3, 224, 224] -> [N, dim]. There are no classes."""

    def __init__(self, vit):
        super().__init__()
        self.vit, self.dim = vit, vit.num_features

    def forward(self, x):
        return self.vit(x)

    @staticmethod
    def head(features):
        """Returns the features [N, dim] and no logits, [N, 0]."""
        return features, features.new_zeros(len(features), 0)


def load_dinov2(path=None, sha256=WEIGHTS_SHA256):
    """Loads DINOv2 ViT-L/14 (arXiv:2304.07193), in eval mode on the CPU; returns it and the SHA-256 of its weights.

    path: the file of facebookresearch/dinov2, by default that in torch's hub cache, into which its 1.2 GB are
    downloaded once. sha256: the first digits that the digest of the file must have.

    Raises ScoreError if the file is missing, damaged or a different one, or if timm is missing.
    """
    try:
        import timm
    except ImportError as error:
        raise ScoreError(f'DINOv2 needs a package: pip install -r requirements-dinov2.txt ({error})') from None
    file, state, digest = published_weights('DINOv2', WEIGHTS_URL, WEIGHTS_NAME, sha256, path)
    with torch.device('meta'):  # these weights are replaced: spend no memory, time or draw from the generator
        vit = timm.create_model(ARCHITECTURE, pretrained=False, img_size=INPUT_SIZE, num_classes=0)
    if isinstance(state, dict) and getattr(state.get('pos_embed'), 'ndim', 0) == 3:
        unused = 'mask_token'  # of training
        state = {key: value for key, value in state.items() if key != unused}
        state['pos_embed'] = resample_positions(state['pos_embed'])
    fill(vit, state, file, f"DINOv2 ViT-L/14's state dict; get {WEIGHTS_URL}")
    return DINOv2(vit).float().eval().requires_grad_(False), digest
