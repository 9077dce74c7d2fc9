"""Compare streamed moments with np.cov, and test the npz files that keep them."""

import os
import threading

import numpy as np
import pytest
import torch
from score_fakes import small_images, small_net

from score import Moments, ScoreError, Statistics, build_statistics, load_statistics, save_statistics


def features(n=1003, dim=20, offset=0.0, seed=0):
    """Return correlated features of different scales, in float64 so that an offset does not round them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, dim)) @ rng.standard_normal((dim, dim)) * np.logspace(-3, 1, dim)
    return torch.from_numpy(x + offset)


def moments_of(batches):
    moments = Moments(batches[0].shape[1])
    for batch in batches:
        moments.update(batch)
    return moments


def largest_error(got, expected):
    return np.abs(got.numpy() - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize('offset', [0.0, 1e6])
@pytest.mark.parametrize('batch_size', [1, 7, 50, 1003])
def test_moments_against_numpy(offset, batch_size):
    x = features(offset=offset)
    moments = moments_of(x.split(batch_size))
    # Compare with np.cov of the same rounded numbers, entry by entry, so that small variances count too.
    expected = np.cov((x - offset).numpy(), rowvar=False)
    scale = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    # A mean of 1e6 is known to 1e-10, against standard deviations from 5e-3 up.
    assert np.abs((moments.covariance().numpy() - expected) / scale).max() < (1e-7 if offset else 1e-12)
    assert largest_error(moments.mean, x.numpy().mean(0)) < 1e-12


def test_moments_of_float32_features_are_gathered_in_float64():
    x = (features() + 1000).float()
    moments = moments_of(x.split(50))
    assert largest_error(moments.covariance(), np.cov(x.double().numpy(), rowvar=False)) < 1e-12


def test_order_does_not_matter_even_when_sorted():
    x = features()
    x = x[x[:, 0].argsort()]  # the first batches lie far from the mean
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))]
    a, b = moments_of(x.split(10)), moments_of(shuffled.split(64))
    assert largest_error(a.covariance(), b.covariance().numpy()) < 1e-12


class LockStep:
    """`all_sum` for threads instead of processes: each passes a tensor and gets the sum, in step."""

    def __init__(self, world):
        self.barrier, self.slots = threading.Barrier(world, timeout=30), [None] * world

    def run(self, work):
        threads = [threading.Thread(target=work, args=(rank, self.all_sum(rank))) for rank in range(len(self.slots))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def all_sum(self, rank):
        def add(tensor):
            self.slots[rank] = tensor.clone()
            self.barrier.wait()
            total = sum(self.slots[1:], self.slots[0])
            self.barrier.wait()
            return total

        return add


def test_moments_reduce_over_processes():
    x = features(offset=1e4)
    shares = [x[:10], x[10:700], x[700:], x[:0]]  # unequal shares, and one process has none
    parts = [moments_of(share.split(50)) if len(share) else Moments(20) for share in shares]
    LockStep(4).run(lambda rank, all_sum: parts[rank].reduce(all_sum))
    for part in parts:
        assert part.n == 1003
        assert largest_error(part.covariance(), np.cov(x.numpy(), rowvar=False)) < 1e-9
        assert largest_error(part.mean, x.numpy().mean(0)) < 1e-12


@pytest.mark.parametrize('n', [0, 1])
def test_a_covariance_needs_two(n):
    moments = Moments(3)
    if n:
        moments.update(torch.ones(n, 3))
    with pytest.raises(ValueError, match=f'at least 2 images, got {n}'):
        moments.covariance()


@pytest.fixture
def built():
    return build_statistics(small_net(), small_images(300).split(64), 300)


def test_npz_round_trip(tmp_path, built):
    path = tmp_path / 'stats' / 'set.npz'
    save_statistics(path, built)
    read = load_statistics(path, small_net())
    assert np.array_equal(read.mu, built.mu) and np.array_equal(read.sigma, built.sigma)
    assert np.array_equal(read.sample, built.sample) and read.sample.shape == (300, 6)
    assert read.made == built.made
    assert read.made == {
        'n': 300, 'feature_net': 'inception', 'weights_hash': 'w', 'protocol': 'pytorch', 'precision': 'fp32'
    }  # fmt: skip
    assert os.listdir(path.parent) == ['set.npz']


def test_pytorch_fid_reads_our_npz(tmp_path, built):
    fid_score = pytest.importorskip('pytorch_fid.fid_score')
    save_statistics(tmp_path / 'set.npz', built)
    mu, sigma = fid_score.compute_statistics_of_path(str(tmp_path / 'set.npz'), None, 50, 6, 'cpu')
    assert np.array_equal(mu, built.mu) and np.array_equal(sigma, built.sigma) and sigma.dtype == np.float64


def test_a_plain_npz_is_read_as_it_is(tmp_path, built):
    np.savez(tmp_path / 'cifar10.train.npz', mu=built.mu, sigma=built.sigma)
    read = load_statistics(tmp_path / 'cifar10.train.npz', small_net(protocol='tf'))
    assert np.array_equal(read.sigma, built.sigma) and read.made == {} and read.sample is None


@pytest.mark.parametrize(
    'asked, message',
    [
        ({'protocol': 'tf'}, 'made with protocol pytorch, not tf'),
        ({'name': 'classifier'}, 'made with feature_net inception, not classifier'),
        ({'weights_hash': 'v'}, 'made with weights_hash w, not v'),
        ({'dim': 7}, 'statistics of 6 features, but inception has 7'),
    ],
)
def test_statistics_of_another_making_are_refused(tmp_path, built, asked, message):
    save_statistics(tmp_path / 'set.npz', built)
    with pytest.raises(ScoreError, match=message) as error:
        load_statistics(tmp_path / 'set.npz', small_net(**asked))
    assert '\n' not in str(error.value) and 'set.npz' in str(error.value)


def test_another_precision_is_a_warning(tmp_path, built):
    save_statistics(tmp_path / 'set.npz', built)
    with pytest.warns(UserWarning, match='made in fp32, compared in bf16'):
        load_statistics(tmp_path / 'set.npz', small_net(precision='bf16'))


def test_float32_statistics_are_cast_with_a_warning(tmp_path, built):
    np.savez(tmp_path / 'set.npz', mu=built.mu.astype(np.float32), sigma=built.sigma.astype(np.float32))
    with pytest.warns(UserWarning, match='float32 statistics limit FID'):
        read = load_statistics(tmp_path / 'set.npz')
    assert read.mu.dtype == read.sigma.dtype == np.float64


EYE = np.eye(4)


@pytest.mark.parametrize(
    'arrays, message',
    [
        ({'mu': np.zeros(4)}, 'no sigma among'),
        ({'features': EYE}, 'no mu and no sigma'),
        ({'mu': np.zeros(4), 'sigma': np.eye(5)}, r'sigma \[d, d\], got \[4\] and \[5, 5\]'),
        ({'mu': np.zeros((4, 1)), 'sigma': EYE}, r'mu must be \[d\]'),
        ({'mu': np.full(4, np.nan), 'sigma': EYE}, 'NaN or infinity'),
        ({'mu': np.zeros(4), 'sigma': np.triu(np.ones((4, 4)))}, 'not symmetric'),
        (
            {'mu': np.zeros(4), 'sigma': EYE, 'sample': np.zeros((9, 3))},
            r'sample must be floats \[m, 4\], got float64 \[9, 3\]',
        ),
        ({'mu': np.array(['a'] * 4), 'sigma': EYE}, 'mu and sigma must be floats, not <U1'),
        ({'mu': np.array([None] * 4), 'sigma': EYE}, 'not an npz of plain arrays'),
    ],
)
@pytest.mark.filterwarnings('ignore:.*statistics limit')
def test_bad_npz_files_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / 'set.npz', **arrays)
    with pytest.raises(ScoreError, match=message) as error:
        load_statistics(tmp_path / 'set.npz')
    assert '\n' not in str(error.value) and 'set.npz' in str(error.value)


def test_missing_truncated_and_foreign_files_are_refused(tmp_path, built):
    path = tmp_path / 'set.npz'
    with pytest.raises(ScoreError, match='no such statistics'):
        load_statistics(path)
    save_statistics(path, built)
    whole = path.read_bytes()
    for damaged in (whole[:-40], whole[: len(whole) // 2], b'', b'text'):
        path.write_bytes(damaged)
        with pytest.raises(ScoreError, match='truncated, or not an npz') as error:
            load_statistics(path)
        assert '\n' not in str(error.value)
    np.save(tmp_path / 'one.npy', EYE)
    with pytest.raises(ScoreError, match='not an npz'):
        load_statistics(tmp_path / 'one.npy')


def test_what_is_no_gaussian_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match='NaN'):
        save_statistics(tmp_path / 'set.npz', Statistics(np.full(4, np.nan), EYE, {}))
    assert os.listdir(tmp_path) == []
