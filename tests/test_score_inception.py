"""Compare the FID Inception with pytorch-fid's and torch-fidelity's networks under the same random weights."""

import re
from urllib.error import URLError

import numpy as np
import pytest
import torch
from score_fakes import random_inception_state

from score import FEATURE_NETS, PROTOCOLS, ScoreError, build_statistics
from score.features import PRECISIONS
from score.inception import WEIGHTS_NAME, WEIGHTS_SHA256, WEIGHTS_URL, load_inception, tensorflow_bilinear


@pytest.fixture(scope='session')
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('inception') / 'random.pth'
    torch.save(random_inception_state(), path)
    return path


@pytest.fixture(scope='session')
def nets(weights):
    return {
        protocol: FEATURE_NETS['inception'](weights, protocol=protocol, sha256='') for protocol in ('pytorch', 'tf')
    }


@pytest.fixture(scope='session')
def pytorch_fid_net(weights):
    oracle = pytest.importorskip('pytorch_fid.inception')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle, 'load_state_dict_from_url', lambda *_, **__: torch.load(weights))
        return oracle.InceptionV3().eval()


@pytest.fixture(scope='session')
def torch_fidelity_net(weights):
    oracle = pytest.importorskip('torch_fidelity.feature_extractor_inceptionv3')
    return oracle.FeatureExtractorInceptionV3(
        'inception-v3-compat', ['2048', 'logits_unbiased', 'logits'], feature_extractor_weights_path=str(weights)
    )


@pytest.fixture(scope='session')
def images():
    """Return smooth and rough 32x32 images, uint8 [6, 3, 32, 32]."""
    noise = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return (torch.nn.functional.interpolate(noise, size=32, mode='bicubic').clamp(0, 1) * 255).to(torch.uint8)


def largest_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


def test_features_equal_pytorch_fid_bit_for_bit(nets, pytorch_fid_net, images):
    expected = pytorch_fid_net(images.float() / 255)[0].flatten(1)
    features, logits = nets['pytorch'](images)
    assert features.shape == (6, 2048) and logits.shape == (6, 1008) and features.dtype == torch.float32
    assert torch.equal(features, expected)
    spread = features.std(0)
    assert (spread > 0).float().mean() > 0.8 and 0.01 < features.mean() < 100  # the weights exercise the network


def test_float_images_give_the_same_as_uint8(nets, images):
    assert torch.equal(nets['pytorch'](images[:2].double().numpy() / 255)[0], nets['pytorch'](images[:2])[0])
    assert torch.equal(PROTOCOLS['tf'](images.float() / 255), PROTOCOLS['tf'](images))


def test_tf_protocol_end_to_end_against_torch_fidelity(nets, torch_fidelity_net, images):
    expected, unbiased, biased = torch_fidelity_net(images)
    features, logits = nets['tf'](images)
    assert largest_error(features, expected) < 1e-5
    assert largest_error(logits, unbiased) < 1e-5
    assert largest_error(logits, biased) > 1e-2  # fc's bias would show


def test_spatial_features_are_those_of_the_graphs_mixed_6_conv(nets, torch_fidelity_net, images):
    # torch-fidelity's conversion of the graph gives the weights of mixed_6/conv to Mixed_6d.branch1x1.
    seen = []
    handle = torch_fidelity_net.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, maps: seen.append(maps))
    torch_fidelity_net(images)
    handle.remove()
    expected = seen[0].permute(0, 2, 3, 1)[..., :7].reshape(6, -1)  # as in the graph, channels are last
    features, logits, spatial = nets['tf'](images, spatial=True)
    assert spatial.shape == (6, nets['tf'].spatial_dim) == (6, 2023) and spatial.dtype == torch.float32
    assert largest_error(spatial, expected) < 1e-5 and (spatial.std(0) > 0).float().mean() > 0.5
    assert all(torch.equal(*pair) for pair in zip(nets['tf'](images), (features, logits), strict=True))
    assert nets['pytorch'].spatial_dim == 0  # sFID is not defined there


def test_spatial_features_equal_pytorch_fids_network_bit_for_bit(nets, pytorch_fid_net, images):
    blocks = torch.nn.Sequential(*pytorch_fid_net.blocks[:2], *pytorch_fid_net.blocks[2][:6])  # up to Mixed_6c
    mixed_6d = pytorch_fid_net.blocks[2][6]
    with torch.no_grad():
        expected = mixed_6d.branch1x1(blocks(PROTOCOLS['tf'](images)))[:, :7]  # [6, 7, 17, 17]
    spatial = nets['tf'](images, spatial=True)[2]
    assert torch.equal(spatial.view(6, 17, 17, 7).permute(0, 3, 1, 2), expected)
    built, theirs = build_statistics(nets['tf'], [images], 6, spatial=True), spatial.double()
    assert largest_error(torch.from_numpy(built.mu_s), theirs.mean(0)) < 1e-5
    assert largest_error(torch.from_numpy(built.sigma_s), theirs.T.cov()) < 1e-5


def test_tf_input_is_torch_fidelitys_bit_for_bit(images):
    oracle = pytest.importorskip('torch_fidelity.interpolate_compat_tensorflow')
    resize = oracle.interpolate_bilinear_2d_like_tensorflow1x
    for batch in (images, images[:, :, :17, :23], images.repeat(1, 1, 12, 11)):
        expected = (resize(batch.float(), size=(299, 299), align_corners=False) - 128) / 128
        assert torch.equal(PROTOCOLS['tf'](batch), expected)


def test_tensorflow_resize_by_hand():
    # Going from 2 to 4 pixels, the sources are 0, 0.5, 1, 1.5; the last lies past the last pixel, which repeats.
    x = torch.tensor([[[[0.0, 10.0], [20.0, 40.0]]]])
    expected = [[0, 5, 10, 10], [10, 17.5, 25, 25], [20, 30, 40, 40], [20, 30, 40, 40]]
    assert torch.equal(tensorflow_bilinear(x, 4), torch.tensor([[expected]], dtype=torch.float32))


def test_pytorch_resize_by_hand():
    # Half-pixel centres without antialiasing: 299 to 299 is the identity, and a black and white pair stays in place.
    x = torch.rand(1, 3, 299, 299)
    assert torch.equal(PROTOCOLS['pytorch'](x), 2 * x - 1)
    row = torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 2, 2)
    ramp = PROTOCOLS['pytorch'](row)[0, 0, 0]
    centres = ((np.arange(299) + 0.5) * 2 / 299 - 0.5).clip(0, 1)
    assert np.abs(ramp.numpy() - (2 * centres - 1)).max() < 1e-6


@pytest.mark.parametrize('protocol', ['pytorch', 'tf'])
def test_grey_is_repeated(protocol, images):
    grey = images[:, :1]
    assert torch.equal(PROTOCOLS[protocol](grey), PROTOCOLS[protocol](grey.expand(-1, 3, -1, -1)))


def test_bf16_stays_close(weights, nets, images):
    features, logits = FEATURE_NETS['inception'](weights, precision='bf16', sha256='')(images)
    expected, expected_logits = nets['pytorch'](images)
    assert features.dtype == torch.float32
    assert 0 < largest_error(features, expected) < 0.03 and largest_error(logits, expected_logits) < 0.03


def test_fp32_is_fp32_under_autocast_and_leaves_the_settings(nets, images):
    with torch.autocast('cpu', torch.bfloat16):
        features, _ = nets['pytorch'](images[:2])
    assert torch.equal(features, nets['pytorch'](images[:2])[0])
    before = torch.backends.cudnn.conv.fp32_precision
    with PRECISIONS['fp32'](torch.device('cpu')):
        assert torch.backends.cudnn.conv.fp32_precision == 'ieee'
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_building_the_net_draws_nothing_from_the_global_generator(weights):
    state = torch.get_rng_state()
    load_inception(weights, sha256='')
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_protocol_and_precision(weights):
    with pytest.raises(ValueError, match=r"protocol must be one of \['pytorch', 'tf'\], got 'jax'"):
        FEATURE_NETS['inception'](weights, protocol='jax')
    with pytest.raises(ValueError, match=r"precision must be one of \['bf16', 'fp32'\], got 'fp16'"):
        FEATURE_NETS['inception'](weights, precision='fp16', sha256='')


@pytest.mark.parametrize(
    'batch, message',
    [
        (torch.zeros(3, 8, 8), r'\[N, C, H, W\]'),
        (torch.zeros(2, 4, 8, 8), '1 or 3 channels'),
        (torch.zeros(0, 3, 8, 8), 'there are no images'),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), 'got torch.int64'),
        (torch.full((2, 3, 8, 8), float('nan')), 'images contain NaN'),
        (torch.full((2, 3, 8, 8), 255.0), r'must lie in \[0, 1\], got \[255, 255\]'),
        (torch.full((2, 3, 8, 8), -0.5), r'must lie in \[0, 1\]'),
    ],
)
def test_unusable_images(nets, batch, message):
    with pytest.raises(ValueError, match=message) as error:
        nets['pytorch'](batch)
    assert '\n' not in str(error.value)


def one_line(error):
    assert '\n' not in str(error.value)


def test_wrong_hash_is_refused(weights):
    with pytest.raises(ScoreError, match=f'sha256 begins with [0-9a-f]{{8}}, not {WEIGHTS_SHA256}') as error:
        FEATURE_NETS['inception'](weights)
    one_line(error)
    assert str(weights) in str(error.value) and WEIGHTS_URL in str(error.value)


def test_truncated_and_foreign_weights_are_refused(weights, tmp_path):
    truncated = tmp_path / 'truncated.pth'
    truncated.write_bytes(weights.read_bytes()[:1_000_000])
    with pytest.raises(ScoreError, match='truncated') as error:
        load_inception(truncated)
    one_line(error)
    with pytest.raises(ScoreError, match='truncated, or not a file of plain tensors') as error:
        load_inception(truncated, sha256='')
    one_line(error)
    for foreign in ({'fc.weight': torch.zeros(1)}, [1, 2]):
        torch.save(foreign, tmp_path / 'foreign.pth')
        with pytest.raises(ScoreError, match="not the FID Inception's state dict") as error:
            load_inception(tmp_path / 'foreign.pth', sha256='')
        one_line(error)


def test_weights_that_run_code_are_not_run(tmp_path):
    torch.save(print, tmp_path / 'code.pth')
    with pytest.raises(ScoreError, match='plain tensors') as error:
        load_inception(tmp_path / 'code.pth', sha256='')
    one_line(error)


def test_missing_path_says_where_to_get_it(tmp_path):
    with pytest.raises(ScoreError, match='no such file; get the Inception weights from https://github.com') as error:
        load_inception(tmp_path / 'none.pth')
    one_line(error)


def test_offline_says_where_to_get_and_put_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))

    def offline(_):
        raise URLError('no route to host')

    monkeypatch.setattr(torch.hub, 'urlopen', offline)
    with pytest.raises(ScoreError, match='no route to host') as error:
        FEATURE_NETS['inception']()
    one_line(error)
    assert WEIGHTS_URL in str(error.value) and str(tmp_path / 'checkpoints' / WEIGHTS_NAME) in str(error.value)
    assert list((tmp_path / 'checkpoints').iterdir()) == []


def test_a_broken_download_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    (tmp_path / 'other').write_bytes(b'half of the weights')
    monkeypatch.setattr('score.inception.WEIGHTS_URL', (tmp_path / 'other').as_uri())
    with pytest.raises(ScoreError, match='invalid hash value') as error:
        load_inception()
    one_line(error)
    assert list((tmp_path / 'checkpoints').iterdir()) == []


def test_the_hub_cache_is_used_and_checked(tmp_path, monkeypatch, weights):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    cached = tmp_path / 'checkpoints' / WEIGHTS_NAME
    cached.parent.mkdir()
    cached.symlink_to(weights)
    with pytest.raises(ScoreError, match=re.escape(f'{cached}: sha256 begins')):
        load_inception()


def test_one_download(tmp_path, monkeypatch, weights):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr('score.inception.WEIGHTS_URL', weights.as_uri())
    _, digest = load_inception(weights, sha256='')
    assert load_inception(sha256=digest)[1] == digest
    monkeypatch.setattr(torch.hub, 'urlopen', None)
    assert load_inception(sha256=digest)[1] == digest
