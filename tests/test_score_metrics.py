"""Compare IS and KID with closed forms and torch-fidelity; test the Scorer that gathers for all three scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from score_fakes import small_images, small_net
from test_score_statistics import LockStep

import score.kid
from score import (
    METRICS,
    Metric,
    Scorer,
    build_statistics,
    calculate_frechet_distance,
    get_inception_and_fid_score,
    get_inception_score,
    kernel_inception_distance,
    kid_interval,
    save_statistics,
)
from score.inception_score import SplitSums


def inception_score(logits, splits=10, batch_size=13):
    sums = SplitSums(len(logits), splits, logits.shape[1])
    for index in torch.arange(len(logits)).split(batch_size):
        sums.update(logits[index], index)
    return sums.score()


def test_uniform_probabilities_score_one():
    assert inception_score(torch.zeros(100, 1008)) == (pytest.approx(1, abs=1e-12), pytest.approx(0, abs=1e-12))


@pytest.mark.parametrize('off', [-float('inf'), -1e4])
def test_balanced_one_hot_scores_the_number_of_classes(off):
    logits = torch.full((10, 10), off).fill_diagonal_(0).repeat(20, 1)
    assert inception_score(logits) == (pytest.approx(10, rel=1e-12), pytest.approx(0, abs=1e-9))


@pytest.mark.parametrize('n, splits', [(100, 10), (103, 10), (10, 10), (37, 1), (19, 7)])
def test_inception_score_is_torch_fidelitys_unshuffled(n, splits):
    metric_isc = pytest.importorskip('torch_fidelity.metric_isc')
    logits = torch.randn(n, 30, generator=torch.Generator().manual_seed(n)) * 3
    expected = metric_isc.isc_features_to_metric(logits, splits, shuffle=False)
    got = inception_score(logits, splits)
    assert got[0] == pytest.approx(expected['inception_score_mean'], rel=1e-12)
    assert got[1] == pytest.approx(expected['inception_score_std'], rel=1e-9, abs=1e-12)


def test_nan_logits_are_not_hidden():
    assert np.isnan(inception_score(torch.full((20, 5), float('nan')), 2)).all()


def test_fewer_images_than_splits():
    with pytest.raises(ValueError, match='10 splits need at least 10 images, got 9'):
        inception_score(torch.zeros(9, 5))
    with pytest.raises(ValueError, match='10 splits need at least 10 images, got 0'):
        get_inception_score(small_images(9)[:0], net=small_net())
    with pytest.raises(ValueError, match='0 splits'):
        inception_score(torch.zeros(9, 5), 0)


def test_get_inception_score():
    net, images = small_net(), small_images(103)
    expected = inception_score(net(images)[1])
    for batch in (images, images.numpy() / 255):
        got = get_inception_score(batch, net=net)
        assert got == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match='num_images must be given'):
        get_inception_score(iter(images), net=net)
    with pytest.raises(ValueError, match='104 images were announced, 103 came'):
        get_inception_score(iter(images), num_images=104, net=net)


def two_sides(n, m, dim=24):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, dim, generator=generator).abs()
    return x, (torch.randn(m, dim, generator=generator) * 1.2).abs()


def test_kid_is_torch_fidelitys_on_the_same_subsets():
    metric_kid = pytest.importorskip('torch_fidelity.metric_kid')
    x, y = two_sides(300, 250)
    expected = metric_kid.kid_features_to_metric(x, y, kid_subsets=20, kid_subset_size=100, verbose=False)
    got = kernel_inception_distance(x, y, subsets=20, subset_size=100)
    assert got == pytest.approx(tuple(expected.values()), rel=1e-5)


def test_kid_is_unbiased():
    # Over all pairs of subsets of one set, the unbiased estimate averages to about 0; the biased one would not.
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(1))
    mean, std = kernel_inception_distance(x[:2000], x[2000:], subsets=200, subset_size=50)
    biased = 3 * 2 / 50  # at least the share of two diagonals
    assert abs(mean) < 4 * std / 200**0.5 < biased


def test_kid_by_hand():
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [2.0, 2.0]])
    # (x.y / 2 + 1)^3 is 1 within x, 27 within y, and 8, 8, 1, 8 across.
    with pytest.warns(UserWarning, match='KID on subsets of 2, not 1000, of 2 and 2 images'):
        mean, std = kernel_inception_distance(x, y)
    assert mean == pytest.approx(1 + 27 - 2 * (8 + 8 + 1 + 8) / 4) and std == pytest.approx(0, abs=1e-12)


def test_kid_refuses_single_images_and_other_dimensions():
    x, y = two_sides(10, 1)
    with pytest.raises(ValueError, match='at least 2 images on each side, got 10 and 1'):
        kernel_inception_distance(x, y)
    with pytest.raises(ValueError, match='different dimension: 24 against 23'):
        kernel_inception_distance(x, x[:, 1:])


def test_the_interval_of_kid_is_the_jackknifes():
    x, y = two_sides(12, 9)
    got, low, high = kid_interval(x, y)

    def mmd(x, y):
        kernel = [((a.double() @ b.double().T) / 24 + 1).pow(3) for a, b in ((x, x), (y, y), (x, y))]
        within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in kernel[:2]]
        return (sum(within) - 2 * kernel[2].mean()).item()

    variance = 0
    for part, left_out in ((x, lambda keep: mmd(x[keep], y)), (y, lambda keep: mmd(x, y[keep]))):
        n = len(part)
        values = [left_out(torch.arange(n) != i) for i in range(n)]
        variance += (n - 1) * np.var(values)
    assert got == pytest.approx(mmd(x, y), rel=1e-10)
    assert (high - got, got - low) == pytest.approx((1.96 * variance**0.5,) * 2, rel=1e-8)
    same = kernel_inception_distance(x[:9], y, subsets=1, subset_size=9)[0]
    assert kid_interval(x[:9], y)[0] == pytest.approx(same, rel=1e-10)
    with pytest.raises(ValueError, match='at least 3 images on each side, got 2 and 9'):
        kid_interval(x[:2], y)


@pytest.mark.parametrize('scale, most', [(1.3, 1.25), (1.0, 2.0)])
def test_the_interval_of_kid_covers_the_truth(scale, most):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 80, 8, generator=generator), torch.randn(200, 60, 8, generator=generator) * scale
    trials = np.array([kid_interval(a, b) for a, b in zip(x, y, strict=True)])
    truth = trials[:, 0].mean() if scale != 1 else 0
    assert ((trials[:, 1] < truth) & (truth < trials[:, 2])).mean() > 0.88
    ratio = (trials[:, 2] - trials[:, 0]).mean() / 1.96 / trials[:, 0].std()
    assert 0.8 < ratio < most


def feed(scorer, images, batch_size):
    for batch in images.split(batch_size):
        scorer.update(batch)
    return scorer


def scored_in_shares(make, images, sizes):
    """Return one scorer of `make()` per rank, each fed a share of the shuffled images, of these sizes, and reduced."""
    scorers = [make() for _ in sizes]
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(2))
    for scorer, share in zip(scorers, shuffled.split(sizes), strict=True):
        for index in share.split(60):
            scorer.update(images[index], index)
    LockStep(len(sizes)).run(lambda rank, all_sum: scorers[rank].reduce(all_sum))
    return scorers


@pytest.fixture
def reference():
    return build_statistics(small_net(), small_images(1500, 1).split(100), 1500)


def test_scorer_equals_the_metrics_on_all_features_at_once(reference):
    net, images = small_net(), small_images(1203, 2)
    got = feed(Scorer(net, 1203), images, 50).result(reference)
    features, logits = net(images)
    real = net(small_images(1500, 1))[0].double().numpy()
    double = features.double().numpy()
    statistics = double.mean(0), np.cov(double, rowvar=False), real.mean(0), np.cov(real, rowvar=False)
    assert got['FID'] == pytest.approx(calculate_frechet_distance(*statistics), rel=1e-8)
    assert (got['IS'], got['IS_std']) == pytest.approx(inception_score(logits), rel=1e-9)
    expected = kernel_inception_distance(features, torch.from_numpy(reference.sample))
    assert (got['KID'], got['KID_std']) == pytest.approx(expected, rel=1e-9)
    assert got['n'] == 1203 and list(got) == ['FID', 'IS', 'IS_std', 'KID', 'KID_std', 'n']


@pytest.mark.filterwarnings('ignore:KID on subsets')
def test_batches_order_and_processes_do_not_matter(reference):
    images = small_images(503, 3)
    expected = feed(Scorer(small_net(), 503), images, 503).result(reference)
    one = feed(Scorer(small_net(), 503), images, 7).result(reference)
    assert one == pytest.approx(expected, rel=1e-9)

    for scorer in scored_in_shares(lambda: Scorer(small_net(), 503), images, [100, 3, 400]):
        assert scorer.result(reference) == pytest.approx(expected, rel=1e-9)


def test_the_sample_is_bounded_and_depends_on_the_number_alone(monkeypatch):
    monkeypatch.setattr(score.kid, 'SAMPLE_SIZE', 40)
    images, net = small_images(300, 4), small_net()
    samples = [feed(Scorer(net, 300), images, size).parts['sample'].rows for size in (300, 11)]
    assert samples[0].shape == (40, 6) and torch.allclose(*samples)
    features, _ = net(images)
    kept = np.sort(np.random.RandomState(2020).choice(300, 40, replace=False))
    assert torch.allclose(samples[0], features[kept]) and len(set(kept)) == 40


def test_kid_is_none_where_the_statistics_keep_no_features(reference, tmp_path):
    np.savez(tmp_path / 'plain.npz', mu=reference.mu, sigma=reference.sigma)
    scorer = feed(Scorer(small_net(), 100), small_images(100), 50)
    with pytest.warns(UserWarning, match='no KID: the statistics hold mu and sigma only'):
        result = scorer.result(score.load_statistics(tmp_path / 'plain.npz', small_net()))
    assert result['KID'] is None and result['KID_std'] is None and result['FID'] > 0


def test_scorer_wants_what_was_announced(reference):
    scorer = Scorer(small_net(), 30)
    scorer.update(small_images(20))
    for ask in (scorer.statistics, scorer.inception_score, lambda: scorer.result(reference)):
        with pytest.raises(ValueError, match='30 images were announced, 20 came'):
            ask()
    with pytest.raises(ValueError, match='images 20 to 39 came, 30 were announced'):
        scorer.update(small_images(20))
    with pytest.raises(ValueError, match='20 images came with 3 indices'):
        scorer.update(small_images(20), torch.arange(3))
    with pytest.raises(ValueError, match='there are no images'):
        scorer.update(small_images(0))
    with pytest.raises(ValueError, match='10 splits need at least 10 images, got 5'):
        Scorer(small_net(), 5)


def test_statistics_of_few_images_need_no_splits():
    assert build_statistics(small_net(), [small_images(3)], 3).made['n'] == 3
    with pytest.raises(ValueError, match='at least 2 images, got 1'):
        build_statistics(small_net(), [small_images(1)], 1)
    with pytest.raises(ValueError, match='4 images were announced, 3 came'):
        build_statistics(small_net(), [small_images(3)], 4)


def test_get_inception_and_fid_score(tmp_path, reference):
    net, images = small_net(), small_images(101, 5)
    save_statistics(tmp_path / 'real.npz', reference)
    scorer = feed(Scorer(net, 101), images, 50)
    expected = scorer.inception_score(), scorer.fid(reference)
    for batch, count in ((images.numpy() / 255, None), ((image for image in images), 101)):
        (mean, std), fid = get_inception_and_fid_score(batch, tmp_path / 'real.npz', count, net=net)
        assert (mean, std) == pytest.approx(expected[0], rel=1e-5) and fid == pytest.approx(expected[1], rel=1e-5)
    parallel = replace(net, trunk=torch.nn.Identity(), prepare=lambda x: net.trunk(net.prepare(x)))
    got = get_inception_and_fid_score(images, tmp_path / 'real.npz', parallel=True, net=parallel)
    assert got[1] == pytest.approx(expected[1], rel=1e-9)
    with pytest.raises(ValueError, match='num_images must be given'):
        get_inception_and_fid_score(iter(images), tmp_path / 'real.npz', net=net)


def test_only_inceptions_figures_go_by_the_bare_name():
    assert small_net().label('FID') == 'FID'
    assert small_net(name='classifier').label('FID') == 'FID(classifier)'


def mean_distance(ours, reference, use_torch):
    return (np.linalg.norm(ours.mu - reference.mu),)


def test_a_metric_is_one_entry_of_the_registry(reference, monkeypatch):
    monkeypatch.setitem(METRICS, 'mean', Metric({'MEAN': ': {:.4g}'}, needs=('mu',), compute=mean_distance))
    images = small_images(1203, 2)
    expected = np.linalg.norm(small_net()(images)[0].double().numpy().mean(0) - reference.mu)
    result = feed(Scorer(small_net(), 1203, metrics=[*score.USUAL, 'mean']), images, 50).result(reference)
    assert list(result) == ['FID', 'IS', 'IS_std', 'KID', 'KID_std', 'MEAN', 'n']
    assert score.describe_figures(result, lambda name: f'{name}(net)')[0].endswith(f', MEAN(net): {expected:.4g}')
    assert result['MEAN'] == pytest.approx(expected, rel=1e-9)
    alone = feed(Scorer(small_net(), 1203, metrics=['mean']), images, 50)
    assert alone.result(reference) == {'MEAN': result['MEAN'], 'n': 1203}
    assert score.compare_statistics(alone.statistics(), reference, metrics=['mean'])['MEAN'] == result['MEAN']


@pytest.mark.parametrize(
    'metrics, gathers', [(['fid'], ['moments']), (['is'], ['split_sums']), (['kid', 'fid'], ['moments', 'sample'])]
)
def test_a_scorer_gathers_what_its_metrics_need_and_no_more(reference, metrics, gathers):
    images = small_images(1203, 2)
    scorers = [Scorer(small_net(), 1203, metrics=metrics) for _ in range(2)]
    assert list(scorers[0].parts) == gathers
    whole = feed(Scorer(small_net(), 1203), images, 50).result(reference)
    for rank, index in enumerate(torch.arange(1203).split([1000, 203])):
        scorers[rank].update(images[index], index)
    LockStep(2).run(lambda rank, all_sum: scorers[rank].reduce(all_sum))
    for scorer in scorers:
        result = scorer.result(reference)
        assert list(result) == [*(figure for name in metrics for figure in METRICS[name].figures), 'n']
        assert result == pytest.approx({key: whole[key] for key in result}, rel=1e-9)
    scorers[0].seen -= 1
    with pytest.raises(ValueError, match='1203 images were announced, 1202 came'):
        scorers[0].result(reference)


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match='metrics must be some of is, is_5000, fid, sfid, kid.*, not fod'):
        Scorer(small_net(), 30, metrics=['fid', 'fod'])


def test_statistics_against_statistics(reference):
    ours = build_statistics(small_net(), [small_images(1203, 2)], 1203)
    result = score.compare_statistics(ours, reference)
    whole = feed(Scorer(small_net(), 1203), small_images(1203, 2), 1203).result(reference)
    assert result == {**{key: whole[key] for key in result}, 'IS': None, 'IS_std': None}
    bare = score.compare_statistics(replace(ours, sample=None), reference)
    assert bare == {**dict.fromkeys(result), 'FID': whole['FID']}
