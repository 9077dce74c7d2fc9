"""A bug inside a mode is raised as it is. It never appears as wrong flags or as a failure of the user."""

import pytest
from conftest import TINY

import interop

MODES = [
    ('train.Run.update', ['--train', '--logdir=other']),
    ('draw.walk.denoise', ['--sample']),
    ('draw.walk.denoise', ['--eval', '--feature_net=classifier']),
    ('score.compare_statistics', ['--eval', '--images=stats/digits.test.classifier.npz', '--feature_net=classifier']),
    ('nll.variational_term', ['--nll']),
    ('draw.picture.table', ['--figure=progressive']),
    ('interop.exports.save_file', ['--export=safetensors']),
    ('interop.pipeline.save_file', ['--export=diffusers']),
    ('interop.onnx_folder.describe', ['--export=onnx']),
    ('score.build_statistics', ['--stats', '--feature_net=classifier']),
    ('interop.read', ['--import_ckpt=x.pt', '--logdir=other']),
]


@pytest.mark.parametrize('place, argv', MODES, ids=[argv[0] for _, argv in MODES])
def test_a_value_error_of_ours(here, cli, monkeypatch, place, argv):
    assert cli(*TINY, '--train', '--logdir=run')[0] == 0
    assert cli(*TINY, '--stats', '--split=test', '--feature_net=classifier')[0] == 0
    assert set(interop.EXPORTS) == {'safetensors', 'diffusers', 'onnx'}

    def bug(*_, **__):
        raise ValueError('a bug')

    monkeypatch.setattr(place, bug)
    with pytest.raises(ValueError, match='^a bug$'):
        cli(*TINY, '--logdir=run', *argv)
