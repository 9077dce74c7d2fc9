"""A run killed while it builds statistics leaves none or complete ones, never a torn npz. A torn npz is refused."""

from functools import partial

import kills
import numpy as np
import pytest
from conftest import TINY
from runs import Forked, one_line
from score_fakes import small_images, small_net

import score
from score import ScoreError

ARGV = [*TINY, '--stats', '--feature_net=classifier']
PATH = 'stats/digits.train.classifier.npz'


def test_a_kill_at_each_stage(here, cli):
    stages = [
        partial(kills.on_call, 'score.scorer.Scorer.update', nth=3),
        partial(kills.halfway_through_a_write, 'numpy.savez', file_at=0),
        partial(kills.on_call, 'os.fsync'),
        partial(kills.on_call, 'os.replace'),
    ]
    for kill in stages:
        assert Forked(*ARGV, log=here / 'log', before=kill).status() == -9
        assert not (here / PATH).exists()
    assert Forked(*ARGV, log=here / 'log', before=partial(kills.on_call, 'os.replace', before=False)).status() == -9
    built = score.load_statistics(PATH)
    (here / PATH).unlink()
    assert cli(*ARGV)[0] == 0
    assert np.array_equal(built.sigma, score.load_statistics(PATH).sigma) and built.made['n'] == 1438


@pytest.mark.parametrize('kept', [0.5, -40, 0], ids=['half', 'without its end', 'empty'])
def test_a_torn_one_is_refused(here, cli, kept):
    whole = score.build_statistics(small_net(), small_images(300).split(64), 300)
    score.save_statistics(PATH, whole)
    content = (here / PATH).read_bytes()
    (here / PATH).write_bytes(content[: len(content) // 2 if kept == 0.5 else kept])
    status, _, error = cli(*ARGV)
    assert status == 1 and f'{PATH}: truncated, or not an npz' in one_line(error) and 'build it anew' in error


def test_a_flood_is_refused_unread(tmp_path):
    np.savez_compressed(tmp_path / 'set.npz', mu=np.zeros(5000), sigma=np.zeros((5000, 5000)))
    with pytest.raises(ScoreError, match='200040256 bytes of statistics'):
        score.load_statistics(tmp_path / 'set.npz')
