"""Score a checkpoint, images from any source, or one data set against another by FID, IS and KID.

Points are scored by the sliced Wasserstein distance.
"""

import hashlib
import logging
import os
import time
from collections import Counter

import torch

import dataset
import score
from dataset import loader
from draw import picture, walk
from run import build, distributed, hardware, inputs, labels, progress, records
from run.config import recorded_keys, replace
from run.errors import UsageError
from run.reference import load_feature_net, load_statistics, statistics_path
from run.restore import run_folder

FEW = 50000  # the published protocol's number of images; with fewer, FID is biased upward


def evaluate(config, net, step=None, interrupted=lambda: False):
    """Draw --num_images (default 50,000) with `net` and score them in a stream.

    Returns the record, or None if interrupted. Each rank draws and scores a share of the images; rank 0 returns the
    record, the others None. Appends the record as one JSON line to logdir/eval.txt and writes samples_ema.png (256
    images, 16 a row) beside it.

    Raises ScoreError if weights or statistics are unusable, DataError if statistics cannot be built.
    """
    config = replace(config, num_images=config.num_images or FEW)
    scores = (_score_points if build.is_points(config) else _score_images)(config, net, interrupted)
    if scores is None:
        return None
    sampling = {key: getattr(config, key) for key in (*recorded_keys(), 'T', 'seed')}
    record = {'step': step, 'weights': config.weights, **sampling, **scores}
    records.append(os.path.join(run_folder(config), 'eval.txt'), record)
    return record


def _score_images(config, net, interrupted):
    begin = time.monotonic()
    with distributed.first_here():  # one rank of each machine makes a missing classifier or statistics
        feature_net = load_feature_net(config)
        compared = load_statistics(config, feature_net)
    if not distributed.same(feature_net.weights_hash):
        raise score.ScoreError(f'{feature_net.name} is not the same on all machines: let them share stats/, or copy it')
    scorer = score.Scorer(feature_net, config.num_images, min(10, config.num_images), metrics=config.metrics)
    # The classifier learned the labels of the data set, so its answers are comparable.
    labelled = config.num_classes and config.feature_net == 'classifier'
    hits = torch.zeros((), dtype=torch.int64, device=hardware.device(config))
    shown = torch.zeros(min(256, config.num_images), *build.shape(config), dtype=torch.uint8, device=hits.device)
    indices = list(range(config.num_images))[distributed.share(config.num_images)]
    for chunk, x_0 in walk.draw(config, net, indices, interrupted):
        logits = scorer.update((x_0 + 1) / 2, torch.tensor(chunk))
        hits += (logits.argmax(1) == labels.of_indices(config, chunk)).sum() if labelled else 0
        tiles = [i for i in chunk if i < len(shown)]
        shown[tiles] = picture.to_uint8(x_0[: len(tiles)])
    if distributed.any_rank(interrupted()):
        return None
    scorer.reduce(distributed.all_sum)
    for gathered in (hits, shown):
        distributed.all_sum(gathered)
    if distributed.rank():
        return None
    hits = hits.item()
    result, seconds = scorer.result(compared, config.fid_use_torch), time.monotonic() - begin
    what = f'{config.num_images} images, {config.sample_steps or config.T} steps, eta {config.eta:g}, {config.var_type}'
    what += f', order {config.order}' if config.order != 1 else ''
    what += ', corrected' if config.corrector else ''
    scores = report(config, feature_net, compared, result, what, seconds)
    if labelled:
        scores['label_accuracy'] = hits / config.num_images
        real = f'{feature_net.test_accuracy:.1%} on real images'
        print(f'  {hits / config.num_images:.1%} read as the label asked for at guidance {config.guidance:g} ({real})')
    # After the scores are printed, which took hours, since this fails if the folder cannot be written.
    path = os.path.join(run_folder(config), f'samples_{config.weights}.png')
    picture.save(path, picture.grid(shown.cpu()))
    return scores


def _score_points(config, net, interrupted):
    if distributed.rank():  # drawing points is quick: rank 0 does it alone
        return None
    drawn = [x_0.cpu() for _, x_0 in walk.draw(config, net, list(range(config.num_images)), interrupted)]
    if interrupted():
        return None
    train, test = (loader.decode_all(inputs.dataset(config, split))[0] for split in ('train', 'test'))
    points = torch.cat(drawn)
    scores = {
        'SW': score.sliced_wasserstein(points, test),
        'SW_data': score.sliced_wasserstein(train[: len(points)], test),
    }
    scores['n'] = min(len(points), len(test))
    print(
        f'Model({config.weights.upper()}): sliced Wasserstein distance {scores["SW"]:.2e}, of two draws of the data '
        f'{scores["SW_data"]:.2e}'
    )
    return scores


def evaluate_images(config, given):
    """Score --images: a folder, zip or npz of images, or an npz of statistics. Print and return the record.

    given: {config key of a flag that the user set: the flagfile that sets it, or ''}. Without --dataset among them,
    --fid_cache may hold any data set.

    Raises as `evaluate`, DataError if the images cannot be read or compared, and UsageError if the user names a run in
    place of the data set.
    """
    if {'logdir', 'ckpt'} & given.keys() and not ({'dataset', 'fid_cache'} & given.keys() or any(given.values())):
        raise UsageError(
            '--images are compared with --dataset, not with that of --logdir or --ckpt: add '
            f"--dataset={config.dataset} or another, or the run's flagfile"
        )
    if build.is_points(config):
        raise dataset.DataError(f'--images are scored as images, and --net={config.net} is of points: leave it out')
    begin, is_statistics = time.monotonic(), score.holds(config.images, 'mu', 'sigma')
    has_images = not is_statistics or score.holds(config.images, 'arr_0')
    absent = ['features', *['mu_s'] * (not score.holds(config.images, 'mu_s', 'sigma_s'))]
    lacking = [name for need in absent for name in score.that_need(need, config.metrics)]
    if lacking and not has_images:
        raise score.ScoreError(f'{config.images} holds statistics, but --metrics={",".join(lacking)} needs the images')
    images = dataset.read_images(config.images, config.image_channels, config.background) if has_images else None
    feature_net = load_feature_net(config)
    compared = load_statistics(config, feature_net, checked='dataset' in given or not config.fid_cache)
    statistics = score.load_statistics(config.images, feature_net) if is_statistics else None
    if not has_images:
        result = score.compare_statistics(statistics, compared, config.fid_use_torch, metrics=config.metrics)
        result['n'], what = statistics.made.get('n'), _describe_source(statistics)
        same = statistics.source is not None and statistics.source == compared.source
    else:
        result, what = _score_files(config, *images, feature_net, compared, statistics)
        same = os.path.realpath(config.images) == (compared.source or {}).get('from')
    if same:
        logging.warning('%s is what it is compared with: a set against itself', config.images)
    return {'images': config.images} | report(config, feature_net, compared, result, what, time.monotonic() - begin)


def _score_files(config, n, stream, feature_net, compared, known=None):
    """Return (scores, description of the images) for images in files. Raises DataError if they cannot be scored.

    n, stream: how many images there are, and batches of them.
    known: statistics that lie beside the images, and whose moments are taken, as guided-diffusion's evaluator does.
    """
    path = config.images
    scorer, seen = score.Scorer(feature_net, n, min(10, n), metrics=config.metrics), Seen()
    with progress.bar(desc='scoring', total=n, unit='image') as bar:
        for images in stream:
            try:
                scorer.update(images)
            except ValueError as error:
                remedy = '--img_size and --channels say what to compare with'
                raise dataset.DataError(f'{path}: {_name(path, scorer.seen)}: {error}: {remedy}') from error
            seen.add(images)
            bar.update(len(images))
    seen.check(path, compared.source or {})
    what = f'{seen}, with their own mu and sigma' if known else str(seen)
    return scorer.result(compared, config.fid_use_torch, known), what


class Seen:
    """Counts over the scored images: how many of each shape, the first of each, how many copies, the largest value."""

    def __init__(self):
        self.shapes, self.first = Counter(), {}  # (C, H, W) -> how many, index of the first
        self.digests, self.largest = set(), 0

    def add(self, images):
        """Count a batch, uint8 [n, C, H, W]."""
        shape = tuple(images.shape[1:])
        self.first.setdefault(shape, self.shapes.total())
        self.shapes[shape] += len(images)
        self.digests.update(hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images)
        self.largest = max(self.largest, images.max().item())

    def __str__(self):
        shapes = ', '.join(f'{n} {_shape(*shape)}' for shape, n in self.shapes.most_common(3))
        shapes += ', ...' if len(self.shapes) > 3 else ''
        copies = self.shapes.total() - len(self.digests)
        of = f'of {_shape(*next(iter(self.shapes)))}' if len(self.shapes) == 1 else f'({shapes})'
        return f'{self.shapes.total()} images {of}' + (f', {copies} of them copies of others' if copies else '')

    def check(self, path, source):
        """Warn if shapes differ, which changes what a score means. Raises DataError if the values are not 8-bit ones.

        source: what the statistics to compare with were made from.
        """
        if self.largest <= 1:
            raise dataset.DataError(f'{path}: no value is above 1 of 255: multiply by 255 before rounding to uint8')
        if len(self.shapes) > 1:
            shape, n = self.shapes.most_common()[-1]
            name = _name(path, self.first[shape])
            text = '%s holds images of %d shapes: %d of %s, %s the first'
            logging.warning(text, path, len(self.shapes), n, _shape(*shape), name)
        usual, reference = self.shapes.most_common(1)[0][0], _recorded_shape(source)
        if None not in reference and usual != reference:
            text = 'images of %s are compared with those of %s: the score counts that difference too'
            logging.warning(text, _shape(*usual), _shape(*reference))


def _recorded_shape(source):
    size = source.get('img_size')
    return source.get('channels'), *(size if isinstance(size, list) else (size, size))


def _shape(channels, height, width):
    return f'{dataset.sizes_text((height, width))}, {"grey" if channels == 1 else "RGB"}'


def _name(path, index):
    return f'image {index}' if path.endswith('.npz') else dataset.open_files(path).name(index)


def _describe_source(statistics):
    """Say what statistics were made from: how many images, and from where."""
    source, n = statistics.source, statistics.made.get('n')
    if source is None:
        return f'{n or "an unknown number of"} images, which the file does not name'
    split = f', {source["split"]} split' if 'split' in source else ''
    return f'{n} images of {_shape(*_recorded_shape(source))}, from {source.get("from")}{split}'


def report(config, feature_net, compared, result, what, seconds):
    """Print the scores as pytorch-ddpm does, with what was scored against what. Return all of it as one record."""
    name = feature_net.label
    whose = config.images or f'Model({config.weights.upper()})'
    for line in score.describe_figures(result, name, config.metrics) or ['nothing of --metrics can be computed']:
        print(f'{whose}: {line}')
    print(f'  {what}, {feature_net.protocol} protocol, {feature_net.precision}, {seconds:.0f} s')
    print(f'  against {statistics_path(config)}: {_describe_source(compared)}')
    biased = [figure for figure in ('FID', 'sFID') if figure in result]
    if biased and result['n'] and result['n'] < FEW:
        text = f'%s of %d images {"is" if len(biased) == 1 else "are"} biased upward: published figures are of %d'
        logging.warning(text, ' and '.join(biased), result['n'], FEW)
    figures = score.figure_names()
    scores = {name(key) if key in figures else key: value for key, value in result.items()}
    return scores | {'reference': statistics_path(config), **feature_net.made, 'seconds': seconds}


def build_statistics(config):
    """--stats: build the statistics of the data set if need be, and say what they were made of.

    Raises as `load_statistics`.
    """
    if build.is_points(config):
        raise dataset.DataError(f'{config.dataset} is of points, which are scored without --stats: --eval is enough')
    statistics = load_statistics(config, load_feature_net(config))
    kinds = {'protocol': '{} protocol', 'precision': '{}'}
    told = [text.format(statistics.made[key]) for key, text in kinds.items() if key in statistics.made]
    print(f'{statistics_path(config)}: {", ".join([_describe_source(statistics), *told])}')
