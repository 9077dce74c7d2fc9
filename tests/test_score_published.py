"""Check published figures, if the real weights and the real CIFAR-10 are at hand."""

from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10

from score import FEATURE_NETS, Scorer
from score.inception import WEIGHTS_NAME

WEIGHTS = Path(torch.hub.get_dir(), 'checkpoints', WEIGHTS_NAME)


@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f'the Inception weights are not in {WEIGHTS.parent}')
def test_cifar10_train_against_test():
    # pytorch-image-generation-metrics gives IS 11.26 for CIFAR-10's training images, and FID 3.15 to the test images.
    try:
        sets = [CIFAR10('data', train=train) for train in (True, False)]
    except RuntimeError:
        pytest.skip('CIFAR-10 is not in data/')
    net = FEATURE_NETS['inception'](device='cuda' if torch.cuda.is_available() else 'cpu')
    scorers = []
    for data in sets:
        scorers.append(Scorer(net, len(data)))
        for images in torch.from_numpy(data.data).permute(0, 3, 1, 2).split(100):
            scorers[-1].update(images)
    train, test = scorers
    assert train.fid(test.statistics()) == pytest.approx(3.15, rel=1e-2)
    assert train.inception_score()[0] == pytest.approx(11.26, rel=1e-2)
