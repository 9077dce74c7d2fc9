"""Compare what rests on nearest neighbours with brute force, with torch-fidelity, and on the digits."""

import numpy as np
import pytest
import torch
from score_fakes import small_images, small_net
from test_score_metrics import feed, scored_in_shares

import score
from score import Scorer, authenticity, neighbours, prdc


def values(ours, real):
    return prdc(ours, real)[::2]


def published(ours, real, k=5, k_manifold=3):
    """Compute the four figures as their papers define them, from all distances at once. Arrays of float64."""

    def distances(x, y):
        return np.sqrt(((x[:, None] - y[None]) ** 2).sum(2))

    def reach(x, k):
        return np.sort(distances(x, x), axis=1)[:, k]  # the first is the distance to itself

    across = distances(ours, real)
    precision = (across <= reach(real, k_manifold)[None]).any(1).mean()
    recall = (across <= reach(ours, k_manifold)[:, None]).any(0).mean()
    inside = across < reach(real, k)[None]
    return precision, recall, inside.sum(1).mean() / k, inside.any(0).mean()


def published_authenticity(ours, training, held_out):
    """Compute AuthPct and Delta_T as their papers define them, from all distances at once. Arrays of float64."""

    def squares(x, y):
        return ((x[:, None] - y[None]) ** 2).sum(2)

    gap = np.sort(squares(training, training), axis=1)[:, 1]  # the first is the distance to itself
    across = squares(ours, training)
    nearest = across == across.min(1, keepdims=True)
    authentic = across.min(1) > np.where(nearest, gap[None], 0).max(1)
    d, d_0 = across.min(1)[:, None], squares(held_out, training).min(1)[None]
    return 100 * authentic.mean(), ((d > d_0) + (d == d_0) / 2).mean()


def gaussians(n, m, dim=16, shift=0.4):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, dim, generator=generator) + shift, torch.randn(m, dim, generator=generator) * 1.2


def grid(n, m, dim=3):
    """Make points with small integers as coordinates, so that most distances are tied and many are 0."""
    generator = torch.Generator().manual_seed(n)
    return [torch.randint(4, (count, dim), generator=generator).float() for count in (n, m)]


@pytest.mark.parametrize('make', [gaussians, grid])
@pytest.mark.parametrize('n, m', [(203, 310), (6, 40), (40, 6)])
@pytest.mark.parametrize('tile', [7, 64, 2048])
def test_prdc_is_as_published(monkeypatch, make, n, m, tile):
    monkeypatch.setattr(neighbours, 'TILE', tile)
    ours, real = make(n, m)
    assert values(ours, real) == pytest.approx(published(ours.double().numpy(), real.double().numpy()), abs=1e-12)


@pytest.mark.parametrize('make', [gaussians, grid])
def test_precision_and_recall_are_torch_fidelitys(make):
    metric_prc = pytest.importorskip('torch_fidelity.metric_prc')
    ours, real = make(203, 310)
    how = {'prc_neighborhood': 3, 'prc_batch_size': 50, 'save_cpu_ram': False, 'verbose': False}
    expected = metric_prc.prc_features_to_metric(ours.double(), real.double(), **how)
    assert values(ours, real)[:2] == pytest.approx((expected['precision'], expected['recall']), abs=1e-6)


def test_ties_do_not_depend_on_rounding():
    ours, real = grid(203, 310)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    tilted = [(x.double() @ turn) * 0.1 + 3 for x in (ours, real)]  # the same distances but for their last bits
    assert values(*tilted) == pytest.approx(values(ours, real), abs=1e-12)


def test_the_nearest_rows_are_found(monkeypatch):
    x, y = gaussians(50, 70)
    expected = torch.cdist(x.double(), y.double()).topk(4, largest=False)
    within = torch.cdist(x.double(), x.double()).fill_diagonal_(float('inf')).topk(2, largest=False)
    for tile in (3, 2048):
        monkeypatch.setattr(neighbours, 'TILE', tile)
        squares, indices = score.nearest(x, y, 4)
        assert torch.equal(indices, expected.indices) and torch.allclose(squares.sqrt(), expected.values)
        assert torch.equal(score.nearest(x, x, 2, same=True)[1], within.indices)


def test_standard_errors():
    ours, real = gaussians(2000, 1000, dim=4)
    trials = [prdc(part, real) for part in ours.split(100)]
    for value, error in ((0, 1), (4, 5)):  # recall and coverage are over the real images, which do not vary here
        spread = np.std([trial[value] for trial in trials], ddof=1)
        assert 0.6 < spread / np.mean([trial[error] for trial in trials]) < 1.6
    precision, error = prdc(ours, real)[:2]
    assert error == pytest.approx((precision * (1 - precision) / 1999) ** 0.5)


@pytest.mark.parametrize('make', [gaussians, grid])
@pytest.mark.parametrize('tile', [7, 2048])
def test_authenticity_is_as_published(monkeypatch, make, tile):
    monkeypatch.setattr(neighbours, 'TILE', tile)
    ours, training = make(103, 60)
    held_out = make(61, 80)[1]
    expected = published_authenticity(*(side.double().numpy() for side in (ours, training, held_out)))
    assert authenticity(ours, training, held_out)[::2] == pytest.approx(expected, abs=1e-10)
    assert 0 < expected[0] < 100 and 0 < expected[1] < 1
    shuffled = training[torch.randperm(60, generator=torch.Generator().manual_seed(5))]
    assert authenticity(ours.flip(0), shuffled, held_out)[::2] == pytest.approx(expected, abs=1e-10)


def test_the_standard_errors_of_authenticity():
    ours, training = gaussians(4000, 300, dim=4)
    held_out = gaussians(2, 4000, dim=4)[1]
    trials = [authenticity(a, training, b) for a, b in zip(ours.split(100), held_out.split(100), strict=True)]
    for value in (0, 2):
        spread = np.std([trial[value] for trial in trials], ddof=1)
        assert 0.6 < spread / np.mean([trial[value + 1] for trial in trials]) < 1.6


def test_what_authenticity_refuses():
    ours, real = gaussians(6, 6)
    with pytest.raises(score.ScoreError, match='at least 2 images, of training and held out too, got 6, 6, 1'):
        authenticity(ours, real, real[:1])


def test_what_prdc_refuses():
    ours, real = gaussians(6, 6)
    for sides in ((ours[:5], real), (ours, real[:5])):
        with pytest.raises(score.ScoreError, match='need at least 6 images on each side, got'):
            prdc(*sides)
    ours[2, 1] = float('nan')
    with pytest.raises(score.ScoreError, match='the features hold NaN or infinity'):
        prdc(ours, real)


@pytest.fixture
def reference():
    return score.build_statistics(small_net(), small_images(300, 1).split(100), 300, features=True)


def test_batches_order_and_processes_do_not_matter(reference):
    images = small_images(203, 3)
    expected = feed(Scorer(small_net(), 203, metrics=['prdc']), images, 203).result(reference)
    direct = prdc(small_net()(images)[0].float(), torch.from_numpy(reference.features))
    assert list(expected.values()) == pytest.approx([*direct, 300, 203, 300, 203], rel=1e-9)
    assert list(expected)[-4:] == ['n_reference_sample', 'n_features', 'n_reference', 'n']
    for scorer in scored_in_shares(lambda: Scorer(small_net(), 203, metrics=['prdc']), images, [100, 3, 100]):
        assert scorer.result(reference) == pytest.approx(expected, rel=1e-9)


def test_the_number_of_features_is_bounded(monkeypatch):
    monkeypatch.setattr('score.scorer.KEPT', 40)
    rows = feed(Scorer(small_net(), 300, metrics=['prdc']), small_images(300), 100).gathered().features
    assert rows.shape == (40, 6) and len(rows.unique(dim=0)) == 40


def test_without_features_of_the_reference_there_is_no_prdc(reference, tmp_path):
    score.save_statistics(tmp_path / 'set.npz', reference)
    score.save_features(tmp_path / 'set.features.npz', reference)
    bare = score.load_statistics(tmp_path / 'set.npz', small_net())
    scorer = feed(Scorer(small_net(), 203, metrics=['prdc', 'fid']), small_images(203), 50)
    with pytest.warns(UserWarning, match='no Precision_k3: the statistics hold no features'):
        result = scorer.result(bare)
    assert result['Precision_k3'] is None and result['FID'] > 0
    read = score.load_features(tmp_path / 'set.features.npz', small_net())
    assert np.array_equal(read.rows, reference.features) and read.made == reference.made
    with pytest.raises(score.StaleError, match='made with protocol pytorch, not tf'):
        score.load_features(tmp_path / 'set.features.npz', small_net(protocol='tf'))
    with pytest.raises(score.ScoreError, match='no features among'):
        score.load_features(tmp_path / 'set.npz', small_net())
    np.savez(tmp_path / 'flat.npz', features=np.zeros(6, np.float32))
    with pytest.raises(score.ScoreError, match='features must be float32 .m, d., got'):
        score.load_features(tmp_path / 'flat.npz', small_net())


def test_two_halves_of_the_digits_overlap(digits):
    images, features = digits
    precision, recall, density, coverage = values(*features(images).chunk(2))
    assert min(precision, recall) > 0.7 and coverage > 0.9 and 0.9 < density < 1.1


def test_one_digit_repeated_has_no_recall(digits):
    images, features = digits
    half = len(images) // 2
    precision, recall, density, coverage = values(
        features(images[:1].expand(half, -1, -1, -1)), features(images[half:])
    )
    assert recall < 0.01 and coverage < 0.05


def test_noise_lowers_precision(digits):
    images, features = digits
    ours, real = images.chunk(2)
    noise = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for amount in (0, 60, 200):
        noisy = (ours + amount * noise).clamp(0, 255).to(torch.uint8)
        found.append(values(features(noisy), features(real)))
    precisions, _, densities, _ = zip(*found, strict=True)
    assert precisions[0] > precisions[1] + 0.05 > precisions[2] and densities[0] > densities[1] > densities[2]


def test_planted_training_images_are_all_found(digits):
    images, features = digits
    training, held_out, ours = images[:1000], images[1000:1400], images[1400:]
    real = features(training), features(held_out)
    planted = torch.cat([features(part) for part in training[::10].split(7)])  # 100, computed in other batches
    _, rows = score.nearest(planted, real[0])  # as --figure=nearest seeks them
    assert torch.equal(training[rows[:, 0]], training[::10])
    alone, mixed = features(ours), torch.cat([features(ours), planted])
    copies = [round(len(x) * (1 - authenticity(x, *real)[0] / 100)) for x in (alone, mixed, planted)]
    assert copies[1] == copies[0] + 100 and copies[2] == 100 and copies[0] < len(ours)
    deltas = [authenticity(x, *real)[2] for x in (alone, mixed, planted, real[1])]
    assert deltas[2] == 0 and deltas[1] < deltas[0] - 0.03 and abs(deltas[0] - 0.5) < 0.1
    assert deltas[3] == pytest.approx(0.5)
