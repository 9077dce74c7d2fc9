"""Compare the Frechet distance with closed forms and independent implementations."""

import numpy as np
import pytest
import torch
from score_fakes import small_images, small_net

from score import calculate_frechet_distance, get_fid_score, save_statistics
from score.scorer import build_statistics

RNG = np.random.default_rng


def gaussian(d, n, seed, decay=0.0):
    """Return the sample mean and covariance of n vectors whose variances fall from 1 to exp(-decay)."""
    rng = RNG(seed)
    x = rng.standard_normal((n, d)) * np.exp(-np.linspace(0, decay, d) / 2) + rng.standard_normal(d)
    return x.mean(0), np.cov(x, rowvar=False)


def orthogonal(d, seed):
    return np.linalg.qr(RNG(seed).standard_normal((d, d)))[0]


@pytest.mark.parametrize('n', [2000, 50])
def test_distance_to_itself_is_zero(n):
    mu, sigma = gaussian(128, n, 0, decay=20)
    assert abs(calculate_frechet_distance(mu, sigma, mu, sigma)) < 1e-6


def test_equal_covariances_give_the_distance_of_the_means():
    mu, sigma = gaussian(64, 500, 1)
    shift = RNG(2).standard_normal(64)
    assert calculate_frechet_distance(mu, sigma, mu + shift, sigma) == pytest.approx(shift @ shift, rel=1e-10)


def test_diagonal_covariances():
    a, b = RNG(3).uniform(0, 4, (2, 50))
    zero = np.zeros(50)
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert calculate_frechet_distance(zero, np.diag(a), zero, np.diag(b)) == pytest.approx(expected, rel=1e-10)


def test_commuting_covariances():
    a, b = RNG(4).uniform(0, 4, (2, 50))
    q, zero = orthogonal(50, 5), np.zeros(50)
    got = calculate_frechet_distance(zero, q * a @ q.T, zero, q * b @ q.T)
    assert got == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-9)


def test_one_dimension_takes_scalars():
    assert calculate_frechet_distance(1.0, 4.0, 3.0, 9.0) == pytest.approx(5.0)


def test_orthogonal_invariance_symmetry_and_scaling():
    (mu1, s1), (mu2, s2) = gaussian(80, 300, 6), gaussian(80, 300, 7)
    d = calculate_frechet_distance(mu1, s1, mu2, s2)
    q = orthogonal(80, 8)
    assert calculate_frechet_distance(mu2, s2, mu1, s1) == pytest.approx(d, rel=1e-10)
    assert calculate_frechet_distance(q @ mu1, q @ s1 @ q.T, q @ mu2, q @ s2 @ q.T) == pytest.approx(d, rel=1e-10)
    for c in (1e-3, 1e3):
        scaled = calculate_frechet_distance(c * mu1, c**2 * s1, c * mu2, c**2 * s2)
        assert scaled == pytest.approx(c**2 * d, rel=1e-9)


@pytest.mark.parametrize('n1, n2', [(40, 60), (60, 40), (40, 1000), (1000, 40)])
def test_rank_deficient_against_the_nuclear_norm(n1, n2):
    # With S = X^T X / (n - 1) of centred X, tr (S1 S2)^1/2 is the sum of the singular values of X1 X2^T / scale.
    x1, x2 = RNG(9).standard_normal((n1, 256)), RNG(10).standard_normal((n2, 256)) * 2
    c1, c2 = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (x1, x2))
    diff = x1.mean(0) - x2.mean(0)
    expected = diff @ diff + (c1**2).sum() + (c2**2).sum() - 2 * np.linalg.svd(c1 @ c2.T, compute_uv=False).sum()
    got = calculate_frechet_distance(x1.mean(0), np.cov(x1, rowvar=False), x2.mean(0), np.cov(x2, rowvar=False))
    assert got == pytest.approx(expected, rel=1e-7)


def test_constant_features_against_a_gaussian():
    mu, sigma = gaussian(16, 100, 11)
    expected = mu @ mu + np.trace(sigma)
    assert calculate_frechet_distance(0 * mu, 0 * sigma, mu, sigma) == pytest.approx(expected)
    assert calculate_frechet_distance(mu, sigma, 0 * mu, 0 * sigma) == pytest.approx(expected)


def test_2048_dimensions_against_torch_fidelity():
    metric_fid = pytest.importorskip('torch_fidelity.metric_fid')
    d, rng = 2048, RNG(12)
    x = torch.from_numpy(rng.standard_normal((5000, d)) * np.exp(-np.linspace(0, 9, d) / 2))
    mix = torch.from_numpy(rng.standard_normal((d, d)) / d**0.5)
    sets = [(x[:2500] @ mix), (x[2500:] @ (mix + 0.1))]
    stats = [{'mu': s.mean(0).numpy(), 'sigma': s.T.cov().numpy()} for s in sets]
    expected = metric_fid.fid_statistics_to_metric(*stats, False)['frechet_inception_distance']
    got = calculate_frechet_distance(stats[0]['mu'], stats[0]['sigma'], stats[1]['mu'], stats[1]['sigma'])
    assert got == pytest.approx(expected, rel=1e-5)
    itself = calculate_frechet_distance(stats[0]['mu'], stats[0]['sigma'], stats[0]['mu'], stats[0]['sigma'])
    assert abs(itself) < 1e-4


def test_tensors_and_use_torch_give_the_same():
    (mu1, s1), (mu2, s2) = gaussian(80, 300, 13), gaussian(80, 300, 14)
    d = calculate_frechet_distance(mu1, s1, mu2, s2)
    tensors = [torch.from_numpy(x) for x in (mu1, s1, mu2, s2)]
    assert calculate_frechet_distance(*tensors, use_torch=True) == pytest.approx(d, rel=1e-10)


def bad(mu=None, sigma=None):
    good = gaussian(4, 50, 15)
    return good[0] if mu is None else mu, good[1] if sigma is None else sigma


@pytest.mark.parametrize(
    'mu, sigma, message',
    [
        (*bad(mu=np.full(4, np.nan)), 'NaN'),
        (*bad(sigma=np.full((4, 4), np.inf)), 'infinity'),
        (*bad(sigma=np.eye(5)), r'sigma \[d, d\]'),
        (*bad(mu=np.zeros((2, 2))), r'mu must be \[d\]'),
        (*bad(sigma=np.triu(np.ones((4, 4)))), 'not symmetric'),
        (*bad(sigma=np.diag([1.0, 1.0, 1.0, -1.0])), 'not positive semi-definite'),
        (np.zeros(3), np.eye(3), '3 against 4'),
    ],
)
def test_what_is_no_gaussian_is_refused(mu, sigma, message):
    good = gaussian(4, 50, 16)
    for arguments in ((mu, sigma, *good), (*good, mu, sigma)):
        with pytest.raises(ValueError) as error:
            calculate_frechet_distance(*arguments)
        assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match=message):
        calculate_frechet_distance(mu, sigma, *good)


def test_get_fid_score_streams_arrays_tensors_and_generators(tmp_path):
    net, real, fake = small_net(), small_images(200, 1), small_images(101, 2)
    reference = build_statistics(net, [real], len(real))
    save_statistics(tmp_path / 'real.npz', reference)
    features, _ = net(fake)
    features = features.double().numpy()
    expected = calculate_frechet_distance(
        features.mean(0), np.cov(features, rowvar=False), reference.mu, reference.sigma
    )
    for images, count in ((fake, None), (fake.numpy() / 255, None), (iter(fake), 101), (iter([*fake, *fake]), 101)):
        got = get_fid_score(tmp_path / 'real.npz', images, count, batch_size=7, net=net)
        assert got == pytest.approx(expected, rel=1e-5)


def test_get_fid_score_needs_a_true_count(tmp_path):
    net, images = small_net(), small_images(20)
    save_statistics(tmp_path / 'real.npz', build_statistics(net, [images], 20))
    with pytest.raises(ValueError, match='num_images must be given'):
        get_fid_score(tmp_path / 'real.npz', iter(images), net=net)
    with pytest.raises(ValueError, match='21 images were announced, 20 came'):
        get_fid_score(tmp_path / 'real.npz', iter(images), 21, net=net)
    with pytest.raises(ValueError, match='at least 2 images, got 1'):
        get_fid_score(tmp_path / 'real.npz', images[:1], net=net)
    with pytest.raises(ValueError, match='at least 2 images, got 0'):
        get_fid_score(tmp_path / 'real.npz', images[:0], net=net)
