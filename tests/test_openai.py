"""Compare --metrics=openai with the formulas of guided-diffusion's evaluator, and read and write its files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY
from runs import one_line
from scipy import linalg
from score_fakes import small_images, small_inception, small_net
from test_evaluate import last_record, npz_of
from test_score_metrics import feed, scored_in_shares

import score
from score import ALIASES, Scorer, build_statistics, load_statistics, save_statistics
from score.inception_score import SplitSums

FIGURES = ['IS_splits_of_5000', 'FID', 'sFID', 'Precision_k3', 'Recall_k3']
TF = ['--metrics=openai', '--fid_protocol=tf', '--dataset=digits', '--img_size=8', '--device=cpu']


def spatial_net(protocol='tf', **fields):
    return small_net(spatial_dim=5 if protocol == 'tf' else 0, protocol=protocol, **fields)


def their_inception_score(logits, size=5000):
    """Compute exp of the mean KL from p(y) in each run of `size` images, and the mean over the runs."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    runs = [p[i : i + size] for i in range(0, len(p), size)]
    return np.mean([np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()) for part in runs])


def their_distance(x, y):
    """Compute |mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^1/2) with the square root of the matrix."""
    means, covariances = ([side(part) for part in (x, y)] for side in (lambda z: z.mean(0), lambda z: np.cov(z.T)))
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    return ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)


def their_precision_and_recall(real, ours, k=3):
    """Compute them from squared distances, with the k-th of the sorted ones, from 0, which counts an image itself."""

    def squares(a, b):
        return ((a[:, None] - b[None]) ** 2).sum(2)

    radii = [np.partition(squares(side, side), k, axis=1)[:, k] for side in (real, ours)]
    between = squares(real, ours)
    return (between <= radii[0][:, None]).any(0).mean(), (between <= radii[1][None]).any(1).mean()


@pytest.fixture(scope='module')
def reference():
    return build_statistics(spatial_net(), small_images(400, 1).split(100), 400, features=True, spatial=True)


def openai(images, net=None, **how):
    return feed(Scorer(net or spatial_net(), len(images), metrics=ALIASES['openai']), images, **how)


@pytest.mark.parametrize('n', [5203, 300])
def test_the_five_numbers_are_those_of_its_formulas(reference, n):
    images, real = small_images(n, 2), small_images(400, 1)
    images[1:4] = images[0]  # ties, and neighbours at distance 0
    images[4:10] = real[:6]
    ours, theirs = ([part.double().numpy() for part in spatial_net()(x, spatial=True)] for x in (images, real))
    expected = [their_inception_score(ours[1]), their_distance(ours[0], theirs[0]), their_distance(ours[2], theirs[2])]
    got = openai(images, batch_size=100).result(reference)
    assert [got[name] for name in FIGURES[:3]] == pytest.approx(expected, rel=1e-6)
    if n < 1000:
        assert tuple(got[name] for name in FIGURES[3:]) == their_precision_and_recall(theirs[0], ours[0])
    assert [name for name in got if name in FIGURES] == FIGURES


def test_50000_images_have_the_usual_inception_score():
    logits = torch.randn(50000, 3, generator=torch.Generator().manual_seed(0))
    usual, theirs = SplitSums(50000, 10, 3), SplitSums(50000, None, 3, size=5000)
    for sums in (usual, theirs):
        sums.update(logits, torch.arange(50000))
    expected = their_inception_score(logits.double().numpy())
    assert usual.score() == theirs.score() and theirs.score()[0] == pytest.approx(expected, rel=1e-9)


def test_batches_order_and_processes_do_not_matter(reference):
    images = small_images(503, 3)
    expected = openai(images, batch_size=503).result(reference)
    assert openai(images, batch_size=7).result(reference) == pytest.approx(expected, rel=1e-9)
    for scorer in scored_in_shares(
        lambda: Scorer(spatial_net(), 503, metrics=ALIASES['openai']), images, [100, 3, 400]
    ):
        assert scorer.result(reference) == pytest.approx(expected, rel=1e-9)


def test_spatial_features_are_computed_only_if_asked_for():
    net = spatial_net()
    asked = []
    watched = replace(net, trunk=lambda x, **how: asked.append(how) or net.trunk(x, **how))
    feed(Scorer(watched, 30), small_images(30), 30)
    assert asked == [{}]
    feed(Scorer(watched, 30, metrics=['sfid']), small_images(30), 30)
    assert asked == [{}, {'spatial': True}]
    with pytest.raises(ValueError, match='inception gives no spatial features under the pytorch protocol'):
        Scorer(spatial_net('pytorch'), 30, metrics=['sfid'])


def test_statistics_keep_the_spatial_moments(tmp_path, reference):
    save_statistics(tmp_path / 'set.npz', reference)
    read = load_statistics(tmp_path / 'set.npz', spatial_net())
    for key in ('mu', 'sigma', 'mu_s', 'sigma_s'):
        assert np.array_equal(getattr(read, key), np.load(tmp_path / 'set.npz')[key])
        assert np.array_equal(getattr(read, key), getattr(reference, key))
    assert read.made == reference.made and read.sigma_s.shape == (5, 5)
    same = score.compare_statistics(read, reference, metrics=['fid', 'sfid'])
    assert same == pytest.approx({'FID': 0, 'sFID': 0}, abs=1e-9)


@pytest.fixture
def theirs(tmp_path, reference):
    """Return a function that writes a reference file as guided-diffusion does, whose means are float32."""
    arrays = {key: getattr(reference, key) for key in ('sigma', 'sigma_s')}
    arrays |= {key: getattr(reference, key).astype(np.float32) for key in ('mu', 'mu_s')}

    def write(*without, **more):
        path = tmp_path / 'VIRTUAL.npz'
        np.savez(path, **{key: value for key, value in (arrays | more).items() if key not in without})
        return path

    return write


def test_their_reference_files_are_of_the_tf_protocol(theirs, recwarn):
    read = load_statistics(theirs(), spatial_net())
    assert read.made == {'feature_net': 'inception', 'protocol': 'tf'} and read.mu_s.dtype == np.float64
    assert not recwarn
    with pytest.raises(score.StaleError, match='VIRTUAL.npz: made with protocol tf, not pytorch; ask for that'):
        load_statistics(theirs(), spatial_net('pytorch'))


@pytest.mark.parametrize(
    'without, more, message',
    [
        (['sigma_s'], {}, 'it holds only one of mu_s and sigma_s; build it anew'),
        (['mu_s'], {}, 'it holds only one of mu_s and sigma_s'),
        ([], {'sigma_s': np.eye(4)}, r'mu must be \[d\] and sigma \[d, d\], got \[5\] and \[4, 4\]'),
        ([], {'mu_s': np.full(5, np.nan)}, 'NaN or infinity'),
        ([], {'mu_s': np.zeros(7), 'sigma_s': np.eye(7)}, '7 spatial features, not 5'),
    ],
)
def test_damaged_spatial_moments_are_refused(theirs, without, more, message):
    with pytest.raises(score.ScoreError, match=message) as error:
        load_statistics(theirs(*without, **more), spatial_net())
    assert '\n' not in str(error.value) and 'VIRTUAL.npz' in str(error.value)


def test_statistics_without_spatial_moments_still_serve_fid(theirs):
    old = load_statistics(theirs('mu_s', 'sigma_s'), spatial_net())
    images = small_images(60, 2)
    with pytest.warns(UserWarning, match='no sFID: the statistics hold no mu_s and no sigma_s'):
        result = feed(Scorer(spatial_net(), 60, metrics=['fid', 'sfid']), images, 60).result(old)
    assert result['sFID'] is None and result['FID'] > 0


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Enter a new working folder, and replace Inception by a tiny network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(score.FEATURE_NETS, 'inception', small_inception)
    return tmp_path


def colour(n, seed):
    return torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def figures_of(line):
    return [part.split(':')[0] for part in line.split(': ', 1)[1].split(', ')]


def test_openai_is_a_name_for_five_numbers_in_its_order(here, cli):
    npz_of(colour(40, 0), here / 'drawn.npz')
    status, out, error = cli('--eval', '--images=drawn.npz', *TF)
    assert status == 0, error
    first, second, *_ = out.splitlines()
    assert figures_of(first) + figures_of(second) == FIGURES and '(n 40 against 1438)' in second
    assert 'tf protocol' in out and 'FID and sFID of 40 images are biased upward' in error
    status, _, error = cli('--stats', '--metrics=fid,sfid', *TF[1:])
    assert status == 0 and 'building' not in error


@pytest.mark.parametrize('flags', [['--fid_protocol=pytorch'], ['--feature_net=classifier']])
@pytest.mark.parametrize('verb', [['--eval', '--images=drawn.npz'], ['--stats'], ['--train', '--eval_step=2']])
def test_spatial_features_are_of_one_protocol_alone(here, cli, verb, flags):
    status, _, error = cli(*TINY, *verb, *TF, *flags)
    assert status == 2 and not (here / 'stats').exists()
    assert 'sfid of --metrics is defined for --feature_net=inception --fid_protocol=tf alone' in one_line(error)
    assert cli(*TINY, '--train', '--logdir=run', *TF, *flags)[0] == 0  # which scores nothing


def test_their_reference_files_serve_all_five_numbers(here, cli):
    npz_of(colour(30, 0), here / 'drawn.npz')
    real = colour(50, 1)
    status, _, error = cli('--stats', '--fid_cache=made.npz', '--metrics=sfid', *TF[1:])
    assert status == 0, error
    kept = np.load(here / 'made.npz')
    virtual = {key: kept[key] for key in ('mu', 'sigma', 'mu_s', 'sigma_s')}
    np.savez(here / 'VIRTUAL.npz', arr_0=real.permute(0, 2, 3, 1).numpy(), **virtual)
    argv = ['--eval', '--images=drawn.npz', *TF[:2], '--device=cpu', '--fid_cache=VIRTUAL.npz']
    status, out, error = cli(*argv)
    assert status == 0, error
    assert 'VIRTUAL.tf.features.npz is missing: building it from the 50 images of VIRTUAL.npz' in error
    assert '(n 30 against 50)' in out and sorted(path.name for path in here.glob('VIRTUAL*')) == [
        'VIRTUAL.npz', 'VIRTUAL.tf.features.npz'
    ]  # fmt: skip
    fid = [word for word in out.split(', ') if word.startswith('FID:')]
    against_made = cli('--eval', '--images=drawn.npz', '--metrics=fid', *TF[1:], '--fid_cache=made.npz')[1]
    assert fid[0] in against_made
    assert 'building' not in cli(*argv)[2]
    npz_of(real, here / 'VIRTUAL.npz')  # images alone: statistics are computed from them too
    status, out, error = cli(*argv)
    assert status == 0 and 'VIRTUAL.tf.npz is missing: building it from the 50 images' in error
    assert f'against VIRTUAL.npz: 50 images of 8x8, RGB, from {here}/VIRTUAL.npz' in out
    npz_of(colour(50, 2), here / 'VIRTUAL.npz')
    status, _, error = cli(*argv)
    assert status == 0 and error.count('was made from files that have changed since: building it from the 50') == 2
    status, _, error = cli(*argv, '--images=VIRTUAL.npz')
    assert status == 0 and 'VIRTUAL.npz is what it is compared with' in error


def test_images_with_moments_of_their_own_are_scored_by_both(here, cli):
    real = colour(50, 1)
    assert cli('--stats', '--fid_cache=made.npz', '--metrics=sfid', *TF[1:])[0] == 0
    kept = np.load(here / 'made.npz')
    virtual = {key: kept[key] for key in ('mu', 'sigma', 'mu_s', 'sigma_s')}
    np.savez(here / 'both.npz', arr_0=real.permute(0, 2, 3, 1).numpy(), **virtual)
    status, out, error = cli('--eval', '--images=both.npz', *TF)
    assert status == 0, error
    assert out.replace('-', ' ').count('FID:   0.000') == 2 and '(n 50 against 1438)' in out
    assert '50 images of 8x8, RGB, with their own mu and sigma' in out and 'biased' not in error
    np.savez(here / 'alone.npz', **virtual)
    status, _, error = cli('--eval', '--images=alone.npz', *TF)
    assert status == 1 and 'alone.npz holds statistics, but --metrics=precision_recall needs' in one_line(error)
    np.savez(here / 'alone.npz', mu=kept['mu'], sigma=kept['sigma'])
    status, _, error = cli('--eval', '--images=alone.npz', *TF, '--metrics=sfid')
    assert status == 1 and 'alone.npz holds statistics, but --metrics=sfid needs the images' in one_line(error)


def test_statistics_that_lack_the_spatial_moments(here, cli):
    npz_of(colour(30, 0), here / 'drawn.npz')
    argv = ['--eval', '--images=drawn.npz', '--metrics=sfid', *TF[1:]]
    assert cli('--stats', '--metrics=fid', *TF[1:])[0] == 0
    ours = here / 'stats' / 'digits.train.tf.npz'
    content = ours.read_bytes()
    (here / 'old.npz').write_bytes(content)
    status, _, error = cli(*argv, '--fid_cache=old.npz')
    message = (
        'old.npz holds no mu_s and sigma_s, which --metrics=sfid needs: move it away, and '
        '--stats --fid_protocol=tf --metrics=sfid builds it anew with them'
    )
    assert status == 1 and one_line(error).endswith(message) and (here / 'old.npz').read_bytes() == content
    assert cli(*argv, '--fid_cache=old.npz', '--metrics=fid')[0] == 0
    status, out, error = cli(*argv)  # in the usual place, ours is built anew
    assert status == 0 and 'has no mu_s and sigma_s: building it from the 1438 images of digits' in error
    assert 'sFID' in out and 'building' not in cli(*argv)[2]


def test_a_checkpoint_is_scored_and_its_samples_are_as_they_write_them(here, cli):
    argv = [*TINY, '--logdir=run', '--cond', *TF[:2]]
    assert cli(*argv, '--train')[0] == 0
    status, out, error = cli('--eval', '--logdir=run', '--num_images=20')
    assert status == 0, error
    assert [name for name in last_record() if name in FIGURES] == FIGURES
    status, _, error = cli('--eval', '--logdir=run', '--num_images=5')
    assert status == 1 and one_line(error).endswith('need at least 6 images on each side, got 5 and 1438')
    assert cli('--sample', '--logdir=run', '--num_images=12', '--labels=3,5')[0] == 0
    with np.load('run/samples/samples.npz') as npz:
        assert npz.files == ['arr_0', 'arr_1'] and npz['arr_0'].shape == (12, 8, 8, 1)
        assert npz['arr_0'].dtype == np.uint8 and npz['arr_1'].dtype == np.int64
        assert npz['arr_1'].tolist() == [3, 5] * 6
    assert cli('--sample', '--logdir=run', '--num_images=12', '--guidance=0', '--out=free')[0] == 0
    assert np.load('free/samples.npz').files == ['arr_0']
