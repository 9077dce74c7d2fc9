"""FID, IS and KID of a checkpoint, of images made by anything, or of one data set against another.

Of points, the sliced Wasserstein distance.
"""

import json
import logging
import os
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import torch

import build
import dataset
import distributed
import loader
import picture
import progress
import sample
import score

FEW = 50000  # below this many images the published protocol's FID is biased upward


def evaluate(config, net, step=None, interrupted=lambda: False):
    """Draw --num_images, by default 50,000, with `net` and score them in a stream.

    Returns the record, or None once interrupted. Each rank draws and scores a share of the images; rank 0 has the
    record, the others None.

    Appends the record as one JSON line to logdir/eval.txt and writes samples_ema.png (256 images, 16 a row) beside it.

    Raises ScoreError for unusable weights or statistics, DataError where these cannot be built.
    """
    config = SimpleNamespace(**{**vars(config), 'num_images': config.num_images or FEW})
    scores = (_score_points if build.of_points(config) else _score_images)(config, net, interrupted)
    if scores is None:
        return None
    sampling = {key: getattr(config, key) for key in (*build.SAMPLER_KEYS, *build.LABEL_KEYS, 'T', 'seed')}
    record = {'step': step, 'weights': config.weights, **sampling, **scores}
    with open(os.path.join(sample.folder(config), 'eval.txt'), 'a') as file:
        file.write(json.dumps(record) + '\n')
    return record


def _score_images(config, net, interrupted):
    begin = time.monotonic()
    with distributed.first_here():  # to train a classifier and build statistics, where they are missing
        feature_net = load_feature_net(config)
        reference = load_reference(config, feature_net)
    if not distributed.same(feature_net.weights_hash):
        raise score.ScoreError(f'{feature_net.name} is not the same on all machines: let them share stats/, or copy it')
    scorer = score.Scorer(feature_net, config.num_images, min(10, config.num_images))
    # Labels mean the same to both where the classifier learned those of the data set.
    labelled = config.num_classes and config.feature_net == 'classifier'
    hits = torch.zeros((), dtype=torch.int64, device=build.device(config))
    shown = torch.zeros(min(256, config.num_images), *build.shape(config), dtype=torch.uint8, device=hits.device)
    indices = list(range(config.num_images))[distributed.share(config.num_images)]
    for chunk, x_0 in sample.draw(config, net, indices, interrupted):
        logits = scorer.update((x_0 + 1) / 2, torch.tensor(chunk))
        hits += (logits.argmax(1) == build.labels(config, chunk)).sum() if labelled else 0
        seen = [i for i in chunk if i < len(shown)]
        shown[seen] = picture.to_uint8(x_0[: len(seen)])
    if distributed.any_rank(interrupted()):
        return None
    scorer.reduce(distributed.all_sum)
    for gathered in (hits, shown):
        distributed.all_sum(gathered)
    if distributed.rank():
        return None
    hits = hits.item()
    path = os.path.join(sample.folder(config), f'samples_{config.weights}.png')
    sample.save(path, picture.grid(shown.cpu()))
    scores = report(config, feature_net, scorer.result(reference, config.fid_use_torch), time.monotonic() - begin)
    if labelled:
        scores['label_accuracy'] = hits / config.num_images
        real = f'{feature_net.test_accuracy:.1%} on real images'
        print(f'  {hits / config.num_images:.1%} read as the label asked for at guidance {config.guidance:g} ({real})')
    return scores


def _score_points(config, net, interrupted):
    if distributed.rank():  # quick, and wanted in one piece
        return None
    drawn = [x_0.cpu() for _, x_0 in sample.draw(config, net, list(range(config.num_images)), interrupted)]
    if interrupted():
        return None
    train, test = (loader.decode_all(build.dataset(config, split))[0] for split in ('train', 'test'))
    points = torch.cat(drawn)
    scores = {'SW': score.sliced_wasserstein(points, test), 'SW_data': score.sliced_wasserstein(train, test)}
    scores['n'] = min(len(points), len(test))
    print(
        f'Model({config.weights.upper()}): sliced Wasserstein distance {scores["SW"]:.2e}, of two draws of the data '
        f'{scores["SW_data"]:.2e}'
    )
    return scores


def evaluate_images(config):
    """Score --images: a folder, zip or npz of images, or an npz of statistics; prints, and returns the record.

    Raises as `evaluate`, and DataError for images that cannot be read.
    """
    begin = time.monotonic()
    feature_net = load_feature_net(config)
    reference = load_reference(config, feature_net)
    if holds_statistics(config.images):
        result = compare(score.load_statistics(config.images, feature_net), reference, config.fid_use_torch)
    else:
        n, stream = dataset.read_images(config.images, config.image_channels, config.background)
        scorer = score.Scorer(feature_net, n, min(10, n))
        with progress.bar(desc='scoring', total=n, unit='image') as bar:
            for images in stream:
                scorer.update(images)
                bar.update(len(images))
        result = scorer.result(reference, config.fid_use_torch)
    return {'images': config.images} | report(config, feature_net, result, time.monotonic() - begin)


def compare(statistics, reference, use_torch):
    """FID and, where both keep features, KID of two sets of statistics; no IS, which needs the images."""
    fid = score.calculate_frechet_distance(
        statistics.mu, statistics.sigma, reference.mu, reference.sigma, use_torch=use_torch
    )
    result = {'FID': fid, 'IS': None, 'IS_std': None, 'KID': None, 'KID_std': None, 'n': statistics.made.get('n')}
    if statistics.sample is not None and reference.sample is not None:
        sides = (torch.from_numpy(side.sample) for side in (statistics, reference))
        result['KID'], result['KID_std'] = score.kernel_inception_distance(*sides)
    return result


def report(config, feature_net, result, seconds):
    """Print the scores as pytorch-ddpm does, and how they were made; returns both as one record."""
    name = feature_net.label
    what = config.images or f'Model({config.weights.upper()})'
    parts = []
    if result['IS'] is not None:
        parts.append(f'{name("IS")}:{result["IS"]:7.3f}({result["IS_std"]:.3f})')
    parts.append(f'{name("FID")}:{result["FID"]:8.3f}')
    if result['KID'] is not None:
        parts.append(f'{name("KID")}: {result["KID"]:.5f}({result["KID_std"]:.5f})')
    steps = '' if config.images else f', {config.sample_steps or config.T} steps, eta {config.eta:g}, {config.var_type}'
    print(f'{what}: {", ".join(parts)}')
    print(f'  {result["n"]} images{steps}, {feature_net.protocol} protocol, {feature_net.precision}, {seconds:.0f} s')
    if result['n'] and result['n'] < FEW:
        logging.warning('FID of %d images is biased upward: published figures are of %d', result['n'], FEW)
    scores = {name(key): value for key, value in result.items() if key != 'n'}
    return scores | {'n': result['n'], 'reference': reference_path(config), **feature_net.made, 'seconds': seconds}


def load_feature_net(config):
    """The network of --feature_net, in fp32 unless --precision=bf16; a classifier is trained where it is missing.

    On the FID Inception with random weights, 300 images a side, bf16 shifted FID by -0.8% (34.65 to 34.36).
    """
    weights = config.inception_weights or None
    if config.feature_net == 'classifier':
        weights = f'{_stem(config)}.classifier.pt'
    return score.FEATURE_NETS[config.feature_net](
        weights,
        protocol=config.fid_protocol,
        precision='bf16' if config.precision == 'bf16' else 'fp32',
        device=build.device(config),
        data=lambda: build.labelled(config),
    )


def reference_path(config):
    """--fid_cache, or stats/<dataset>.<split>.npz, with the protocol or feature net in its name where not the usual."""
    if config.fid_cache:
        return config.fid_cache
    usual = config.feature_net == 'inception' and config.fid_protocol == 'pytorch'
    made = '' if usual else f'.{config.fid_protocol if config.feature_net == "inception" else config.feature_net}'
    return f'{_stem(config)}.{config.split or "train"}{made}.npz'


def _stem(config):
    name = Path(config.dataset).stem if os.path.exists(config.dataset) else config.dataset
    return os.path.join('stats', name + ('' if build.is_native(config) else str(config.img_size)))


def load_reference(config, feature_net):
    """The statistics at `reference_path`, built from the data set where they are missing."""
    path = reference_path(config)
    if not os.path.exists(path):
        score.check_writable(path)
        images = build.dataset(config, config.split or 'train')
        logging.info('%s is missing: building it from the %d images of %s', path, len(images), config.dataset)
        batches = (x for x, _ in build.in_order(config, images))
        score.save_statistics(path, score.build_statistics(feature_net, batches, len(images)))
    return score.load_statistics(path, feature_net)


def build_reference(config):
    """Build the statistics of the data set where they are missing, and print what is there. Raises as `evaluate`."""
    if build.of_points(config):
        raise dataset.DataError(f'{config.dataset} is of points, which are scored without --stats: --eval is enough')
    statistics = load_reference(config, load_feature_net(config))
    print(f'{reference_path(config)}: {statistics.made or "mu and sigma alone"}')


def holds_statistics(path):
    """Whether a file is an npz of mu and sigma."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {'mu.npy', 'sigma.npy'} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
