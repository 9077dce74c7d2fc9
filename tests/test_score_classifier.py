"""The classifier feature net: trained, cached, deterministic, and telling good images from bad."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from score import FEATURE_NETS, ScoreError, Scorer, build_statistics
from score.classifier import load_classifier, train_classifier


@pytest.fixture(scope='session')
def digits():
    """Return (images, labels, test_images, test_labels) of the 1,797 8x8 digits, in a seeded order."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.from_numpy((data.images[order] / 16 * 255).astype(np.uint8))[:, None]
    labels = torch.from_numpy(data.target[order])
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


@pytest.fixture(scope='session')
def path(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp('stats') / 'digits.classifier.pt'
    FEATURE_NETS['classifier'](path, data=lambda: digits)
    return path


def no_data():
    raise AssertionError('the cached classifier needs no data')


def test_trained_once_then_read(path, digits):
    net = FEATURE_NETS['classifier'](path, data=no_data)
    assert net.test_accuracy > 0.97
    features, logits = net(digits[2])
    assert features.shape == (597, 128) and logits.shape == (597, 10)
    assert (logits.argmax(1) == digits[3]).float().mean().item() == pytest.approx(net.test_accuracy)
    assert (features.std(0) > 0).float().mean() > 0.5
    made = {'feature_net': 'classifier', 'weights_hash': load_classifier(path)[2], 'protocol': 'native'}
    assert net.made == {**made, 'precision': 'fp32'}


def test_same_seed_same_network_and_global_generator_untouched(digits):
    state = torch.get_rng_state()
    a, b, c = (train_classifier(*digits[:2], seed=seed, steps=5).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a['fc.weight'], c['fc.weight'])


@pytest.mark.filterwarnings('ignore:KID on subsets')
def test_scores_fall_with_quality(path, digits):
    net = FEATURE_NETS['classifier'](path)
    train, test = digits[0], digits[2]
    reference = build_statistics(net, train.split(100), len(train))
    noise = torch.randn(test.shape, generator=torch.Generator().manual_seed(0))
    results = []
    for sigma in (0, 30, 120):
        scorer = Scorer(net, len(test))
        for images in (test + sigma * noise).clamp(0, 255).to(torch.uint8).split(100):
            scorer.update(images)
        results.append(scorer.result(reference))
    for metric in ('FID', 'KID'):
        values = [result[metric] for result in results]
        assert values == sorted(values) and values[2] > 3 * values[0]
    assert 8 < results[0]['IS'] <= 10


@pytest.mark.parametrize('shape, classes', [((1, 28, 28), 3), ((3, 64, 64), 2), ((3, 17, 9), 4)])
def test_other_sizes_and_colours(shape, classes):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.arange(40) % classes
    network = train_classifier(images, labels, steps=2)
    features, logits = network.head(network(images / 255))
    assert features.shape == (40, 128) and logits.shape == (40, classes)


def test_bad_training_data():
    images, labels = torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64)
    for x in (images.float(), images[0], images[..., :4]):
        with pytest.raises(ValueError, match=r'trains on uint8 \[N, C, H >= 8, W >= 8\]'):
            train_classifier(x, labels)
    for y in (labels[:4], labels - 1):
        with pytest.raises(ValueError, match='10 images need as many labels from 0 up'):
            train_classifier(images, y)


def test_images_of_another_shape_are_refused(path):
    with pytest.raises(ValueError, match=r'trained on images \(1, 8, 8\), got \(3, 8, 8\)'):
        FEATURE_NETS['classifier'](path)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_missing_damaged_and_foreign_files(path, tmp_path):
    with pytest.raises(ScoreError, match='is missing, and there is no labelled data'):
        FEATURE_NETS['classifier'](tmp_path / 'none.pt')
    (tmp_path / 'half.pt').write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ScoreError, match='truncated'):
        FEATURE_NETS['classifier'](tmp_path / 'half.pt')
    for foreign in ({'state': {}}, [1], {'state': {}, 'shape': [1, 8, 8], 'num_classes': 10, 'test_accuracy': 1.0}):
        torch.save(foreign, tmp_path / 'foreign.pt')
        with pytest.raises(ScoreError, match='not a cached classifier') as error:
            FEATURE_NETS['classifier'](tmp_path / 'foreign.pt')
        assert '\n' not in str(error.value)
