"""Random weights for Inception, and a small feature net, for the tests of score/."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import interpolate

from score.features import FeatureNet
from score.images import rgb, unit_range
from score.inception_network import FIDInception


def random_inception_state(seed=0):
    """Return He-scaled convolutions and near-identity batch norms, so that activations neither vanish nor blow up."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = FIDInception()
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.8, 1.2)
                nn.init.normal_(module.bias, 0, 0.1)
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.uniform_(module.running_var, 0.8, 1.2)
        nn.init.normal_(net.fc.weight, 0, 0.05)
        nn.init.normal_(net.fc.bias, 0, 1)
    return net.state_dict()


def small_net(dim=6, num_classes=5, seed=0, *, spatial_dim=0, **fields):
    """Return a FeatureNet that costs nothing: f(x) = relu(W x) of 4x4 images, logits V f(x), spatial features U x.

    It computes in float64: on some CPUs the last bits of a float32 product depend on the batch size, and tests compare
    results of the same images up to float64's rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(48, dim, generator=generator).double()
    v = torch.randn(dim, num_classes, generator=generator).double()
    u = torch.randn(48, spatial_dim, generator=generator).double()
    made = {'name': 'inception', 'weights_hash': 'w', 'protocol': 'pytorch', 'precision': 'fp32', **fields}

    def trunk(x, spatial=False):
        x = x.double().flatten(1)
        return ((x @ w).relu(), x @ u) if spatial else (x @ w).relu()

    return FeatureNet(
        dim=dim,
        num_classes=num_classes,
        spatial_dim=spatial_dim,
        device=torch.device('cpu'),
        prepare=unit_range,
        trunk=trunk,
        head=lambda maps: (maps, (maps.double() @ v).float()),
        **made,
    )


def small_inception(weights=None, *, protocol='pytorch', **how):
    """Stand in for FEATURE_NETS['inception']: a `small_net` of images of any size, with sFID under the tf protocol."""
    net = small_net(spatial_dim=5 if protocol == 'tf' else 0, protocol=protocol)
    return replace(net, prepare=lambda x: interpolate(rgb(x.float() / 255), (4, 4)))


def small_images(n, seed=0):
    return torch.randint(256, (n, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
