"""Builds the FID Inception: the TensorFlow graph of 2015-12-05 as mseitzer/pytorch-fid ported it to torchvision."""

from functools import partial

import torch.nn.functional as F
from torchvision.models import inception as v3

from .statistics import exact_device

# As in TensorFlow, the padding does not count in an average.
average_pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
max_pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)


class BlockA(v3.InceptionA):
    def _forward(self, x):
        return [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(average_pool(x)),
        ]


class BlockC(v3.InceptionC):
    def _forward(self, x):
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(average_pool(x)),
        ]


class BlockE(v3.InceptionE):
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


class FIDInception(v3.Inception3):
    """Inception v3 (arXiv:1512.00567) that pools as the graph of 2015-12-05 does.

    `head(net(x))` gives features and logits.

    forward: [N, 3, 299, 299] in [-1, 1] -> maps [N, 2048, 8, 8]; head: maps -> features [N, 2048], logits [N, 1008].
    With spatial=True, forward returns (maps, spatial features [N, 2023]).
    """

    spatial_dim = 17 * 17 * 7

    def __init__(self, num_classes=1008):
        blocks = [v3.BasicConv2d, BlockA, v3.InceptionB, BlockC, v3.InceptionD, BlockE, v3.InceptionAux]
        super().__init__(num_classes=num_classes, aux_logits=False, inception_blocks=blocks, init_weights=False)
        # The published graph pools its last block like this, and published scores rest on it.
        self.Mixed_7c.pool = max_pool

    def forward(self, x, spatial=False):
        # torchvision registers its layers in the order that they run in.
        *layers, _avgpool, _dropout, _fc = self.children()
        features = None
        for layer in layers:
            if spatial and layer is self.Mixed_6d:
                features = self._spatial(x)
            x = layer(x)
        return (x, features) if spatial else x  # [N, 2048, 8, 8]

    def _spatial(self, x):
        """Computes the features of sFID (Nash et al. 2021, arXiv:2103.03841) from the input of Mixed_6d.

        They are the first 7 channels of the graph's mixed_6/conv, the 1x1 convolution of the block that torchvision
        calls Mixed_6d, after its ReLU. They are laid out as in the graph, channels last, as in the statistics that
        guided-diffusion publishes.

        x: [N, 768, 17, 17]. Returns [N, 2023]: row, column, channel.
        """
        maps = self.Mixed_6d.branch1x1(x)[:, :7]  # [N, 7, 17, 17]
        return maps.permute(0, 2, 3, 1).flatten(1)

    def head(self, maps):
        """Computes features = mean over space, and logits = W features, without the bias of fc.

        The Inception Score is defined on these logits. They are float64, because no setting of TF32 touches that.
        """
        features = self.avgpool(maps).flatten(1)  # [N, 2048]
        exact = exact_device(maps.device)
        return features, features.to(exact).double() @ self.fc.weight.to(exact).double().T
