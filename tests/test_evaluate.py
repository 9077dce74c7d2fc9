"""--eval, --stats and --images: which images are scored against which statistics, what is printed and kept."""

import json
import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from absl.testing import flagsaver
from conftest import TINY
from PIL import Image
from runs import config_of, load, one_line, scalars
from score_fakes import random_inception_state, small_inception

import dataset
import evaluate
import score
from bench import solvers
from dataset import loader
from interop import card
from run import records
from run.restore import restore, run_folder
from score import classifier

CLASSIFIER = '--feature_net=classifier'


@pytest.fixture
def trained(here, cli):
    assert cli(*TINY, '--train', '--logdir=run', CLASSIFIER)[0] == 0
    return here


@pytest.fixture
def inception_weights(here, monkeypatch):
    """Make random Inception weights, and skip the check of their hash."""
    torch.save(random_inception_state(), here / 'inception.pth')
    original = score.FEATURE_NETS['inception']
    monkeypatch.setitem(score.FEATURE_NETS, 'inception', lambda *a, **k: original(*a, **k, sha256=''))
    return here / 'inception.pth'


def last_record(path='run/eval.txt'):
    with open(path) as file:
        return json.loads(file.readlines()[-1])


def npz_of(images, path):
    """Write an npz of images as OpenAI's evaluator reads it. images: uint8 [N, C, H, W]."""
    np.savez(path, arr_0=images.permute(0, 2, 3, 1).numpy())
    return path


def test_eval_of_digits_needs_nothing_but_its_checkpoint(trained, cli, monkeypatch):
    monkeypatch.setattr(classifier, 'cache_classifier', partial(classifier.cache_classifier, steps=20))
    (trained / 'stats' / 'digits.classifier.pt').unlink()
    status, out, error = cli('--eval', '--logdir=run', '--num_images=300')
    assert status == 0, error
    assert (trained / 'stats' / 'digits.classifier.pt').exists()
    assert 'Model(EMA): IS(classifier):' in out and 'FID(classifier):' in out and 'KID(classifier):' in out
    assert '300 images, 8 steps, eta 1, fixedlarge' in out
    assert 'WARNING: FID of 300 images is biased upward' in error and 'building it from the 1438 images' in error
    assert 'training the classifier: 20/20 steps' in error  # score/ was given the progress bar
    record = last_record()
    assert record['FID(classifier)'] > 0 and record['n'] == 300 and record['weights'] == 'ema' and record['T'] == 8
    assert record['feature_net'] == 'classifier' and len(record['weights_hash']) == 64 and record['seconds'] > 0
    assert (trained / 'stats' / 'digits.train.classifier.npz').exists()
    assert Image.open('run/samples_ema.png').size == (16 * 67 + 3, 16 * 67 + 3)
    assert scalars('run', 'FID_classifier_EMA') == {4: pytest.approx(record['FID(classifier)'])}
    # The second time nothing is built, and the scores are the same with another batch size.
    status, _, error = cli('--eval', '--logdir=run', '--num_images=300', '--sample_batch_size=77', '--precision=fp32')
    assert status == 0 and 'building' not in error and (trained / 'run' / 'eval.txt').read_text().count('\n') == 2
    assert last_record()['FID(classifier)'] == pytest.approx(record['FID(classifier)'], rel=0.05)


def test_metrics_are_chosen_by_name(trained, cli):
    argv = ['--eval', '--logdir=run', '--num_images=30', '--precision=fp32']
    assert cli(*argv)[0] == 0
    usual = last_record()
    status, out, error = cli(*argv, '--metrics=kid,fid,kid')
    assert status == 0, error
    record, (line, *_) = last_record(), out.splitlines()
    left_out = {'IS(classifier)', 'IS_std(classifier)'}
    assert set(record) == set(usual) - left_out
    fid, kid, std = (record[f'{name}(classifier)'] for name in ('FID', 'KID', 'KID_std'))
    assert line == f'Model(EMA): FID(classifier):{fid:8.3f}, KID(classifier): {kid:.5f}({std:.5f})'
    assert fid == usual['FID(classifier)'] and kid == usual['KID(classifier)']
    status, out, error = cli(*argv, '--metrics=is')
    assert status == 0 and 'biased' not in error  # which is said of FID
    for wrong, phrase in (('fid,kdi', 'there is no kdi among is is_5000 fid'), ('', 'there is no name among is is_')):
        status, _, error = cli(*argv, f'--metrics={wrong}')
        assert status == 2 and phrase in one_line(error)
    assert one_line(cli(*argv, '--metrics=fid,kdi')[2]).endswith('is it kid?')


def test_precision_and_recall_of_a_checkpoint(trained, cli):
    argv = ['--eval', '--logdir=run', '--precision=fp32', '--num_images=30', '--metrics=fid,prdc']
    status, out, error = cli(*argv)
    assert status == 0, error
    beside = 'stats/digits.train.classifier.features.npz'
    assert f'{beside} is missing: building it from the 1438 images of digits, 0.7 MB' in error
    assert error.count('digits, train: ') == 1  # both caches come from one pass
    record, (first, second, *_) = last_record(), out.splitlines()
    figures = [f'{name}(classifier)' for name in ('Precision_k3', 'Recall_k3', 'Density_k5', 'Coverage_k5')]
    values = [f'{name}: {record[name]:.4f}({record[name.replace("(", "_se(")]:.4f})' for name in figures]
    assert first == f'Model(EMA): FID(classifier):{record["FID(classifier)"]:8.3f}'
    assert second == f'Model(EMA): {", ".join(values)} (n 30 against 1438)'
    assert (record['n'], record['n_features'], record['n_reference'], record['precision']) == (30, 30, 1438, 'fp32')
    assert scalars('run', 'Recall_k3_classifier_EMA') == {4: pytest.approx(record[figures[1]])}
    rows = score.load_features(beside, evaluate.load_feature_net(config_of(*TINY, CLASSIFIER))).rows
    assert rows.shape == (1438, 128)
    status, _, error = cli(*argv, '--sample_batch_size=7')
    assert status == 0 and 'building' not in error
    assert [last_record()[name] for name in figures] == pytest.approx([record[name] for name in figures], abs=1e-6)
    status, _, error = cli(*argv, '--num_images=5')
    assert status == 1 and one_line(error).endswith('need at least 6 images on each side, got 5 and 1438')


def test_copies_of_training_images_are_told_from_new_ones(here, cli):
    argv = [*TINY, '--eval', CLASSIFIER, '--metrics=authenticity']
    found = {}
    for split in ('train', 'test'):
        npz_of(loader.decode_all(dataset.load('digits', '', 8, split))[0][:300], here / f'{split}.npz')
        status, out, error = cli(*argv, f'--images={split}.npz')
        assert status == 0, error
        for part in ('train', 'test'):
            assert (f'{part}.classifier.features.npz is missing' in error) == (split == 'train')
        assert '(k 1, n 300 against 1438 of training and 359 held out)' in out
        line = out.splitlines()[0]
        found[split] = [float(line.split(f'{name}(classifier): ')[1].split('(')[0]) for name in ('AuthPct', 'Delta_T')]
    assert found['train'] == [0, 0] and found['test'][0] > 40 and abs(found['test'][1] - 0.5) < 0.1
    # Against the test split, the training set stays the training set.
    status, out, _ = cli(*argv, '--images=train.npz', '--split=test')
    assert status == 0 and 'AuthPct(classifier): 0.00(0.00), Delta_T(classifier): 0.0000(0.0000)' in out


def test_kid_with_an_interval(here, cli):
    npz_of(torch.from_numpy(random_images(30, 1, 8, 8)), here / 'drawn.npz')
    argv = [*TINY, '--eval', CLASSIFIER, '--metrics=kid_interval']
    status, out, error = cli(*argv, '--images=drawn.npz')
    assert status == 0 and re.match(
        r'drawn.npz: KID_all\(classifier\): \d\.\d{5} \(95%: \d\.\d{5} to \d\.\d{5}\) \(n 30 against 1438\)\n', out
    ), error
    assert cli(*TINY, '--stats', CLASSIFIER, '--split=test')[0] == 0
    status, out, error = cli(*argv, '--images=stats/digits.test.classifier.npz')
    assert status == 0 and '(n 359 against 1438)' in out, error


def test_files_of_statistics_alone_have_no_precision_and_recall(here, cli):
    assert cli(*TINY, '--stats', CLASSIFIER)[0] == 0
    path = here / 'stats' / 'digits.train.classifier.npz'
    kept = np.load(path)
    np.savez(here / 'old.npz', mu=kept['mu'], sigma=kept['sigma'])
    npz_of(torch.from_numpy(random_images(30, 1, 8, 8)), here / 'drawn.npz')
    argv = [*TINY, '--eval', CLASSIFIER, '--images=drawn.npz']
    assert cli(*argv, '--fid_cache=old.npz')[0] == 0
    status, _, error = cli(*argv, '--fid_cache=old.npz', '--metrics=prdc')
    assert status == 1 and 'old.npz does not keep the features of its images, which --metrics=prdc' in one_line(error)
    status, _, error = cli(*TINY, '--eval', CLASSIFIER, f'--images={path}', '--metrics=fid,prdc')
    assert status == 1 and 'holds statistics, but --metrics=prdc needs the images' in one_line(error)
    # Beside a file without a source, in the usual place, are features of the data set that the place is named after.
    os.replace(here / 'old.npz', path)
    status, out, error = cli(*argv, '--metrics=prdc')
    assert status == 0 and 'digits.train.classifier.features.npz is missing' in error, error
    assert 'Precision_k3(classifier): 0.0' in out and '(n 30 against 1438)' in out and 'FID' not in out
    assert cli(*TINY, '--stats', CLASSIFIER, '--metrics=prdc')[0] == 0


@pytest.mark.parametrize('run', ['--logdir=run', '--ckpt=run/ckpt.pt'])
def test_a_run_does_not_say_what_images_are_compared_with(here, cli, monkeypatch, run):
    def reached(config):
        raise score.ScoreError(f'compared with {config.dataset}')

    monkeypatch.setattr(evaluate, 'load_feature_net', reached)
    npz_of(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), here / 'images.npz')
    argv = ['--eval', '--images=images.npz', run]
    status, _, error = cli(*argv)
    assert status == 2 and 'compared with --dataset, not with that of --logdir' in one_line(error)
    (here / 'flags.txt').write_text('--dataset=digits\n')
    for more in ('--dataset=digits', '--fid_cache=some.npz', '--flagfile=flags.txt'):
        assert re.search('compared with (digits|cifar10)$', one_line(cli(*argv, more)[2]))


def test_the_card_of_an_export_has_the_figures_that_were_chosen(trained, cli):
    argv = ['--eval', '--logdir=run', '--num_images=30', '--metrics=prdc']
    assert cli(*argv)[0] == 0
    lines = (trained / 'run' / 'eval.txt').read_text()
    record = json.loads(lines) | {'Precision_k3(classifier)': 0.0, 'Recall_k3(classifier)': None}
    (line,) = card._scores_table([record]).splitlines()[2:]
    assert 'Precision_k3(classifier) 0, ' in line and 'Recall_k3(classifier)' not in line
    assert f'Coverage_k5(classifier) {record["Coverage_k5(classifier)"]:.4g}, ' in line and 'precision fp32' in line
    # Whose scores they are is told. Those that pytorch-ddpm writes say only after which step.
    theirs = {'IS': 9.4, 'FID': 3.9, 'IS_EMA': 9.5, 'FID_EMA': 3.2, 'step': 5000}
    lines = card._scores_table([record, record | {'weights': 'net'}, theirs]).splitlines()[2:]
    assert [line.split(' | ')[:3] for line in lines] == [['| 4', 'ema', '30'], ['| 4', 'net', '30'], ['| 5000', '', '']]
    assert lines[2].startswith('| 5000 |  |  | IS 9.4, FID 3.9, IS_EMA 9.5, FID_EMA 3.2 |')


def test_a_checkpoint_suggests_its_metrics(trained, cli):
    state = torch.load('run/ckpt.pt', weights_only=True)
    for metrics, expected in ((['kid'], 0), (['fod'], 2)):
        state['config']['metrics'] = metrics
        torch.save(state, 'run/ckpt.pt')
        status, out, error = cli('--eval', '--logdir=run', '--num_images=30')
        assert status == expected, error
    assert one_line(error).endswith('there is no metric fod: --metrics takes some of ' + ' '.join(score.METRICS))
    assert 'KID(classifier)' in last_record() and 'FID(classifier)' not in last_record()
    assert cli('--eval', '--logdir=run', '--num_images=30', '--metrics=fid')[0] == 0
    assert 'FID(classifier)' in last_record()


def test_the_usual_line_is_pytorch_ddpms(trained, cli):
    status, out, _ = cli('--eval', '--logdir=run', '--num_images=30')
    record = {key.removesuffix('(classifier)'): value for key, value in last_record().items()}
    line = 'Model(EMA): IS(classifier):{IS:7.3f}({IS_std:.3f}), FID(classifier):{FID:8.3f}, '
    assert out.splitlines()[0] == (line + 'KID(classifier): {KID:.5f}({KID_std:.5f})').format(**record)
    keys = list(record)
    assert keys[keys.index('FID') :][:6] == ['FID', 'IS', 'IS_std', 'KID', 'KID_std', 'n']


def test_scores_are_of_the_images_that_sampling_draws(trained, cli):
    assert cli('--sample', '--logdir=run', '--num_images=64', '--precision=fp32')[0] == 0
    assert cli('--eval', '--logdir=run', '--num_images=64', '--precision=fp32')[0] == 0
    drawn = last_record()['FID(classifier)']
    flags = [f for f in TINY if not f.startswith('--num_images')]
    found = []
    for path in ('run/samples/samples.npz', 'run/samples'):
        status, out, _ = cli(*flags, '--eval', CLASSIFIER, f'--images={path}')
        assert status == 0 and '64 images' in out
        found.append(float(out.split('FID(classifier):')[1].split(',')[0]))
    assert found[0] == found[1] == pytest.approx(drawn, rel=0.02)  # they were rounded to 8 bits


def test_real_images_score_better_than_noise(here, cli):
    test = loader.decode_all(dataset.load('digits', '', 8, 'test'))[0]
    noise = torch.randint(256, test.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flags = [*TINY, '--eval', CLASSIFIER]
    fids = []
    for name, images in (('test', test), ('noise', noise)):
        status, out, _ = cli(*flags, f'--images={npz_of(images, here / f"{name}.npz")}')
        assert status == 0
        fids.append(float(out.split('FID(classifier):')[1].split(',')[0]))
    assert fids[0] < 5 < fids[1] / 5


def test_statistics_against_statistics(here, cli):
    for split in ('train', 'test'):
        status, out, _ = cli(*TINY, '--stats', CLASSIFIER, f'--split={split}')
        assert (
            status == 0 and f'digits.{split}.classifier.npz: ' in out and f'from digits, {split} split, native' in out
        )
    status, out, _ = cli(*TINY, '--eval', CLASSIFIER, '--images=stats/digits.test.classifier.npz')
    assert status == 0 and 'FID(classifier):' in out and 'KID(classifier):' in out and 'IS(classifier)' not in out
    status, out, _ = cli(*TINY, '--eval', CLASSIFIER, '--images=stats/digits.train.classifier.npz')
    assert abs(float(out.split('FID(classifier):')[1].split(',')[0])) < 1e-3


def test_eval_with_inception(here, cli, folder_of_images, inception_weights, monkeypatch):
    # The distance in 2048 dimensions takes ten seconds.
    monkeypatch.setattr('score.metrics.calculate_frechet_distance', lambda *_, **__: 1.0)
    argv = [*TINY, f'--dataset={folder_of_images}', '--logdir=run', f'--inception_weights={inception_weights}']
    argv += ['--fid_protocol=tf', '--fid_cache=here.npz', '--num_images=12', '--metrics=fid,is,prdc']
    assert cli(*argv, '--train')[0] == 0
    status, out, error = cli(*argv, '--eval')
    assert status == 0, error
    assert 'Model(EMA): IS:' in out and ', FID:' in out and 'classifier' not in out and 'tf protocol' in out
    assert 'Model(EMA): Precision_k3: ' in out and '(n 12 against 12)' in out
    assert np.load('here.features.npz')['features'].shape == (12, 2048)
    made = score.load_statistics('here.npz').made
    assert made['n'] == 12 and made['protocol'] == 'tf'
    status, _, error = cli(*argv, '--eval', '--fid_protocol=pytorch')
    assert status == 1 and 'here.npz: made with protocol tf, not pytorch' in error


@pytest.fixture
def inception(monkeypatch):
    """Replace Inception by a tiny network, in tests of messages."""
    monkeypatch.setitem(score.FEATURE_NETS, 'inception', small_inception)


def test_pytorch_ddpms_statistics_are_read_as_they_are(here, cli, folder_of_images, inception):
    np.savez('stats/cifar10.train.npz', mu=np.zeros(6), sigma=np.eye(6))
    status, out, error = cli('--eval', f'--images={folder_of_images}', '--device=cpu')
    assert status == 0, error
    assert 'FID:' in out and 'KID' not in out and 'no KID' in error


def written(folder, images):
    """Write images, [H, W] or [H, W, 3], as numbered PNG files."""
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f'{i}.png')
    return folder


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_it_says_what_was_scored_against_what(here, cli):
    written(here / 'drawn', np.tile(random_images(15, 8, 8), (2, 1, 1)))
    status, out, _ = cli(*TINY, '--eval', CLASSIFIER, '--images=drawn')
    assert status == 0 and '  30 images of 8x8, grey, 15 of them copies of others, native protocol, fp32' in out
    assert ('  against stats/digits.train.classifier.npz: 1438 images of 8x8, grey, from digits, train split\n') in out
    cli(*TINY, '--stats', CLASSIFIER, '--split=test')
    status, out, error = cli(*TINY, '--eval', CLASSIFIER, '--images=stats/digits.test.classifier.npz')
    assert '  359 images of 8x8, grey, from digits, test split, native protocol' in out and 'itself' not in error


def test_a_set_against_itself(here, cli, inception):
    flags = [*TINY, '--eval', '--img_size=16']
    written(here / 'drawn', random_images(12, 16, 16))
    status, out, error = cli(*flags, '--images=./drawn', f'--dataset={here}/drawn')
    assert status == 0 and './drawn is what it is compared with' in error
    (path,) = (here / 'stats').glob('drawn-16-*.train.npz')
    assert 'is what it is compared with' in cli(*flags, f'--images={path}', '--dataset=drawn')[2]


def test_what_makes_a_score_mean_something_else_is_said(here, cli, inception):
    flags = [*TINY, '--eval', '--dataset=real', '--img_size=16']
    written(here / 'real', random_images(12, 16, 16, 3))
    written(here / 'mixed', random_images(12, 16, 16, 3))
    Image.fromarray(random_images(8, 8, 3)).save(here / 'mixed' / 'thumb.png')
    status, out, error = cli(*flags, '--images=mixed')
    assert status == 0 and '  13 images (12 16x16, RGB, 1 8x8, RGB)' in out
    assert 'mixed holds images of 2 shapes: 1 of 8x8, RGB, thumb.png the first' in error
    status, _, error = cli(*flags, f'--images={npz_of(torch.from_numpy(random_images(12, 1, 8, 8)), here / "a.npz")}')
    assert status == 0 and 'images of 8x8, grey are compared with those of 16x16, RGB' in error


def test_images_that_the_classifier_cannot_take_are_named(here, cli):
    written(here / 'drawn', random_images(12, 8, 8))
    Image.fromarray(random_images(50, 50)).save(here / 'drawn' / 'thumb.png')
    status, _, error = cli(*TINY, '--eval', CLASSIFIER, '--images=drawn')
    said = 'drawn: thumb.png: the classifier was trained on images (1, 8, 8), got (1, 50, 50): --img_size'
    assert status == 1 and said in one_line(error)


def test_values_from_0_to_1_as_bytes_are_refused(here, cli):
    npz_of(torch.from_numpy(random_images(30, 1, 8, 8)) // 255, here / 'dark.npz')
    status, _, error = cli(*TINY, '--eval', CLASSIFIER, '--images=dark.npz')
    assert status == 1 and 'dark.npz: no value is above 1 of 255: multiply by 255' in one_line(error)


def test_images_and_statistics_check_only_what_they_use(here, cli):
    npz_of(torch.from_numpy(random_images(30, 1, 8, 8)), here / 'drawn.npz')
    unusable = ['--ch=48', '--ch_mult=1,2,2,2,2', '--grad_accum=3', '--sample_steps=9', '--schedule=jsd']
    for mode in (['--stats'], ['--eval', '--images=drawn.npz']):
        status, _, error = cli(*TINY, *unusable, CLASSIFIER, *mode)
        assert status == 0, error
        assert cli(*TINY, *unusable, CLASSIFIER, *mode, '--train')[0] == 2
    status, _, error = cli('--eval', '--images=drawn.npz', '--net=point_mlp', '--dataset=moons')
    assert status == 1 and '--net=point_mlp is of points' in one_line(error)


def test_evaluation_while_training(here, cli):
    argv = [*TINY, '--train', '--logdir=run', CLASSIFIER, '--eval_step=2', '--num_images=20']
    assert cli(*argv)[0] == 0
    with open('run/eval.txt') as file:
        assert [json.loads(line)['step'] for line in file] == [2, 4]
    assert list(scalars('run', 'FID_classifier_EMA')) == [2, 4]
    # The evaluation leaves no trace: the weights equal those of a run without it.
    assert cli(*TINY, '--train', '--logdir=plain', CLASSIFIER, '--num_images=20')[0] == 0
    a, b = (torch.load(f'{name}/ckpt.pt', weights_only=True)['net_model'] for name in ('run', 'plain'))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_checkpoint_named_without_a_folder_is_in_the_working_folder():
    """An empty name is no folder to a tracker."""
    assert run_folder(config_of('--ckpt=ckpt.pt')) == os.curdir


def test_a_line_that_was_cut_off_costs_no_other_record(tmp_path):
    for step in (1, 2):
        records.append(tmp_path / 'eval.txt', {'step': step})
    with open(tmp_path / 'eval.txt', 'a') as file:
        file.write('{"step": 3, "n')
    records.append(tmp_path / 'eval.txt', {'step': 4})
    assert [record['step'] for record in records.read(tmp_path)] == [1, 2, 4]


def test_an_evaluation_that_fails_costs_no_training_steps(here, cli):
    argv = [*TINY, '--train', '--logdir=run', CLASSIFIER]
    status, _, error = cli(*argv, '--eval_step=3', '--num_images=1')
    assert status == 1 and 'a covariance needs at least 2 images' in one_line(error) and load('run')['step'] == 3


def test_an_interrupted_evaluation_writes_nothing(trained):
    config, net, _ = restore(config_of('--logdir=run', '--num_images=20', CLASSIFIER), set())
    assert evaluate.evaluate(config, net, None, lambda: True) is None
    assert not (trained / 'run' / 'eval.txt').exists()


def test_where_statistics_are_kept():
    for flags, path in (
        ([], 'stats/cifar10.train.npz'),
        (['--split=test', '--dataset=mnist', '--img_size=28'], 'stats/mnist.test.npz'),
        (['--dataset=mnist'], 'stats/mnist32.train.npz'),
        (['--dataset=celeba', '--img_size=64', '--fid_protocol=tf'], 'stats/celeba64.train.tf.npz'),
        (['--dataset=digits', '--img_size=8', CLASSIFIER], 'stats/digits.train.classifier.npz'),
        (['--fid_cache=a.npz', CLASSIFIER], 'a.npz'),
    ):
        assert evaluate.statistics_path(config_of(*flags)) == path


@pytest.mark.parametrize(
    'argv, phrase',
    [
        (['--images=no/such'], 'no images at no/such'),
        (['--images=no/such.npz', '--dataset=few'], 'no images at no/such.npz: there is no such file'),  # said first
        (['--images=one.npz'], 'at least 2 images'),
        (['--images=large.npz'], 'the classifier was trained on images'),
        (['--images=float.npz'], 'arr_0 must be uint8'),
        (['--images=flipped.npz'], 'flipped.npz is no npz of images'),
        (['--images=names.npz'], 'names.npz is no npz of images'),
        (['--images=one.npz', '--dataset=unlabelled'], 'has no labels'),
        (['--images=one.npz', '--dataset=few'], 'few has 9 images: --feature_net=classifier holds out every tenth'),
        (
            ['--images=one.npz', '--dataset=unlabelled', '--split=test', '--feature_net=inception'],
            'inception.pth: no such',
        ),
        (['--logdir=none'], 'no checkpoint at none/ckpt.pt'),
    ],
)
def test_what_cannot_be_scored(here, cli, argv, phrase):
    zeros = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    npz_of(zeros[:1] + 9, 'one.npz')
    npz_of(torch.zeros(3, 1, 16, 16, dtype=torch.uint8), 'large.npz')
    np.savez('float.npz', arr_0=np.zeros((3, 8, 8, 1)))
    content = bytearray(npz_of(zeros, here / 'flipped.npz').read_bytes())
    content[len(content) // 3] ^= 1
    (here / 'flipped.npz').write_bytes(content)
    np.savez('names.npz', pictures=zeros.numpy())
    written(here / 'unlabelled', zeros[:, 0].numpy())
    (here / 'few').mkdir()
    written(here / 'few' / 'a', random_images(9, 8, 8))
    flags = [*TINY, '--eval', CLASSIFIER, '--inception_weights=inception.pth']
    status, _, error = cli(*flags, *argv)
    assert status == 1 and phrase in error.strip().splitlines()[-1] and 'Traceback' not in error


def test_the_bench_scores_every_solver(here, cli, capsys, monkeypatch):
    argv = [*TINY, '--logdir=run', CLASSIFIER, '--num_images=20', '--metrics=kid']
    assert cli(*argv, '--train')[0] == 0
    monkeypatch.setattr(solvers, 'CALLS', (3,))
    with flagsaver.flagsaver():
        solvers.main([*argv, '--seeds=2'])
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(solvers.SOLVERS) + len(solvers.WHOLE)
    rows = json.loads(Path('run/solvers.json').read_text())
    assert {(row['solver'], row['calls']) for row in rows} >= {('ancestral', 8), ('DDIM', 8), ('UniPC-3', 3), ('2M', 3)}
    assert all(len(row['FID']) == 2 and min(row['FID']) > 0 for row in rows) and Path('run/solvers.png').exists()
