"""Compare MIND with closed forms, optimal matchings and torch-fidelity, and its interval with what it promises."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from score_fakes import small_images, small_net
from test_score_metrics import feed, scored_in_shares

import score
from score import METRICS, Scorer, build_statistics, compare_statistics, mind


def two_sides(n, m, dim=16):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, dim, generator=generator).abs(), torch.randn(m, dim, generator=generator).abs() * 1.2


def test_mind_by_hand():
    x, y = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [4.0]])
    assert mind(x, y, 3, 5)[0] == pytest.approx(3 * (2**2 + 3**2) / 2)
    assert mind(x, x, 3, 5)[0] == 0


def test_a_shift_counts_three_times_its_square():
    x = torch.randn(50, 400, generator=torch.Generator().manual_seed(0))
    shift = torch.linspace(-1, 1, 400)
    assert mind(x, x + shift, 20000, 2)[0] == pytest.approx(3 * shift.square().sum().item(), rel=0.05)  # 5 sigma


def test_the_projections_are_matched_as_cheaply_as_can_be():
    x, y = two_sides(9, 9)
    generator = torch.Generator().manual_seed(7)
    costs = []
    for u in torch.nn.functional.normalize(torch.randn(30, 16, generator=generator)).double():
        squares = ((x.double() @ u)[:, None] - (y.double() @ u)[None]) ** 2
        costs.append(squares[linear_sum_assignment(squares)].mean().item())
    assert mind(x, y, 30, 2, seed=7)[0] == pytest.approx(3 * 16 * np.mean(costs), rel=1e-6)


@pytest.mark.parametrize('n, m', [(80, 80), (80, 203), (203, 80)])
def test_mind_is_torch_fidelitys(n, m):
    metric_mind = pytest.importorskip('torch_fidelity.metric_mind')
    x, y = two_sides(n, m)
    how = {'mind_num_projections': 100, 'cuda': False, 'rng_seed': 2020, 'verbose': False}
    (expected,) = metric_mind.mind_features_to_metric(x, y, **how).values()
    assert mind(x, y, 100, 2)[0] == pytest.approx(expected, rel=1e-5)


def test_of_the_larger_side_as_many_are_chosen():
    x, y = two_sides(30, 200)
    chosen = y[torch.randperm(200, generator=torch.Generator().manual_seed(2020))[:30]]
    assert mind(x, y, 2000, 2)[0] == pytest.approx(mind(x, chosen, 2000, 2)[0], rel=0.1)  # other directions
    assert mind(x, y, 50, 2)[0] == pytest.approx(mind(y, x, 50, 2)[0], rel=1e-12)
    assert mind(x, y[:30], 50, 2)[0] == pytest.approx(mind(x.flip(0), y[:30].flip(0), 50, 2)[0], rel=1e-12)


def test_the_interval_is_the_bootstraps():
    x, y = two_sides(12, 12)
    value, low, high = mind(x, y, 130, 40, seed=3)
    generator = torch.Generator().manual_seed(3)
    u = torch.nn.functional.normalize(torch.randn(130, 16, generator=generator)).double()
    resampled = []
    for of_x, of_y in torch.randint(12, (40, 2, 12), generator=generator):
        (a, b) = ((side[rows].double() @ u.T).numpy() for side, rows in ((x, of_x), (y, of_y)))
        resampled.append(48 * ((np.sort(a, 0) - np.sort(b, 0)) ** 2).mean())
    spread = np.quantile(resampled - np.mean(resampled), [0.025, 0.975])
    assert (low - value, high - value) == pytest.approx(tuple(spread), rel=1e-6)
    assert low < value < high


@pytest.mark.parametrize('scale, most', [(1.6, 1.4), (1.0, 2.5)])
def test_the_interval_covers_the_mean(scale, most):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(120, 60, 6, generator=generator), torch.randn(120, 60, 6, generator=generator) * scale
    trials = np.array([mind(a, b, 30, 60) for a, b in zip(x, y, strict=True)])
    truth = trials[:, 0].mean()
    assert ((trials[:, 1] < truth) & (truth < trials[:, 2])).mean() > 0.88
    ratio = (trials[:, 2] - trials[:, 1]).mean() / (2 * 1.96) / trials[:, 0].std()
    assert 0.8 < ratio < most


def test_what_mind_refuses():
    x, y = two_sides(5, 5)
    with pytest.raises(score.ScoreError, match='at least 2 images on each side, got 1 and 5'):
        mind(x[:1], y)
    for bad in (float('nan'), float('inf')):
        with pytest.raises(score.ScoreError, match='the features hold NaN or infinity'):
            mind(x, torch.full_like(y, bad))


def test_batches_order_and_processes_do_not_matter(monkeypatch):
    few = partial(mind, directions=50, resamples=5)
    monkeypatch.setattr('score.metrics.mind', few)
    reference = build_statistics(small_net(), small_images(300, 1).split(100), 300)
    images = small_images(203, 3)
    expected = feed(Scorer(small_net(), 203, metrics=['mind']), images, 203).result(reference)
    direct = few(small_net()(images)[0].float(), torch.from_numpy(reference.sample))
    assert list(expected.values()) == pytest.approx([*direct, 203, 300, 203], rel=1e-9)
    for scorer in scored_in_shares(lambda: Scorer(small_net(), 203, metrics=['mind']), images, [100, 3, 100]):
        assert scorer.result(reference) == pytest.approx(expected, rel=1e-9)
    ours = build_statistics(small_net(), [images], 203)
    assert compare_statistics(ours, reference, metrics=['mind'])['MIND'] == pytest.approx(direct[0], rel=1e-9)


def test_few_digits_are_ranked_as_fid_ranks_many(digits):
    images, features = digits
    ours, real = images.split([1000, 797])
    reference = features(real)
    noise = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    drawn = [features((ours + amount * noise).clamp(0, 255).to(torch.uint8)) for amount in (160, 80, 0)]
    moments = [(x.double().mean(0), x.double().T.cov()) for x in (*drawn, reference)]
    fids = [score.calculate_frechet_distance(*each, *moments[-1]) for each in moments[:-1]]
    found = [mind(x[:250], reference, 100, 50) for x in drawn]
    assert fids == sorted(fids, reverse=True) and found == sorted(found, reverse=True)
    assert found[0][1] > found[2][2]  # the intervals lie apart


def test_every_figure_that_ranks_is_one_that_is_computed():
    ranked = score.ranking(METRICS)
    assert ranked.keys() <= set(score.main_figures()) and set(ranked.values()) == {min, max}
    assert ranked['FID'] is ranked['MIND'] is min and ranked['IS'] is ranked['Recall_k3'] is max
    assert 'Delta_T' not in ranked and list(score.ranking(['mind', 'kid'])) == ['MIND', 'KID']
