"""Compare DINOv2's features with the definition of its network, under random weights, and with dgm-eval's images."""

import re
import sys
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from PIL import Image
from runs import one_line
from score_fakes import small_images, small_net
from test_evaluate import npz_of, random_images
from test_score_metrics import feed
from torchvision.transforms import v2

import score
from score import FEATURE_NETS, ScoreError, Scorer, build_statistics
from score.dinov2 import WEIGHTS_NAME, WEIGHTS_SHA256, WEIGHTS_URL, dinov2_input, load_dinov2

DIM, DEPTH, HEADS = 384, 12, 6  # of ViT-S/14, which is ViT-L/14 with fewer layers, channels and heads


def random_state(seed=0):
    """Return a state dict with the names and shapes of facebookresearch/dinov2's published files."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {'cls_token': (1, 1, DIM), 'pos_embed': (1, 1 + 37 * 37, DIM), 'mask_token': (1, DIM)}
    shapes |= {'patch_embed.proj.weight': (DIM, 3, 14, 14), 'patch_embed.proj.bias': (DIM,)}
    for block in (f'blocks.{i}' for i in range(DEPTH)):
        for name, rows, columns in (
            ('attn.qkv', 3 * DIM, DIM), ('attn.proj', DIM, DIM), ('mlp.fc1', 4 * DIM, DIM), ('mlp.fc2', DIM, 4 * DIM)
        ):  # fmt: skip
            shapes |= {f'{block}.{name}.weight': (rows, columns), f'{block}.{name}.bias': (rows,)}
        for name in ('norm1.weight', 'norm1.bias', 'norm2.weight', 'norm2.bias', 'ls1.gamma', 'ls2.gamma'):
            shapes[f'{block}.{name}'] = (DIM,)
    shapes |= {'norm.weight': (DIM,), 'norm.bias': (DIM,)}
    scale = {'weight': 0.05, 'gamma': 0.3, 'cls_token': 1, 'pos_embed': 1}
    return {
        name: torch.randn(shape, generator=generator) * scale.get(name.split('.')[-1], 0.1)
        + (name.endswith('weight') and 'norm' in name)
        for name, shape in shapes.items()
    }


def their_positions(table, side=16):
    """Sample the 37 x 37 grid by cubic convolution (Keys 1981, a = -3/4) at (i + 1/2) 37 / 16.1 - 1/2, in float64."""
    at = (np.arange(side) + 0.5) * 37 / (side + 0.1) - 0.5
    weights = np.zeros((side, 37))
    for i, x in enumerate(at):
        for j in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
            d, a = abs(x - j), -0.75
            near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
            weights[i, min(max(j, 0), 36)] += near if d <= 1 else far
    w = torch.from_numpy(weights)
    grid = table[0, 1:].double().view(37, 37, -1)
    return torch.cat([table[0, :1].double(), torch.einsum('ai,bj,ijd->abd', w, w, grid).flatten(0, 1)])


def their_features(state, x):
    """Compute the class token of a ViT with LayerScale in float64. x: [N, 3, 224, 224]. Returns [N, DIM]."""
    state = {name: value.double() for name, value in state.items()}

    def norm(h, name):
        return F.layer_norm(h, (DIM,), state[f'{name}.weight'], state[f'{name}.bias'], eps=1e-6)

    def linear(h, name):
        return h @ state[f'{name}.weight'].T + state[f'{name}.bias']

    patches = F.unfold(x.double(), 14, stride=14).transpose(1, 2)  # [N, 256, 3 * 14 * 14]
    h = patches @ state['patch_embed.proj.weight'].flatten(1).T + state['patch_embed.proj.bias']
    h = torch.cat([state['cls_token'].expand(len(x), 1, DIM), h], 1) + their_positions(state['pos_embed'])
    for block in (f'blocks.{i}' for i in range(DEPTH)):
        q, k, v = linear(norm(h, f'{block}.norm1'), f'{block}.attn.qkv').unflatten(2, (3, HEADS, -1)).unbind(2)
        weights = torch.einsum('nqhd,nkhd->nhqk', q, k).div((DIM // HEADS) ** 0.5).softmax(3)
        mixed = torch.einsum('nhqk,nkhd->nqhd', weights, v).flatten(2)
        h = h + state[f'{block}.ls1.gamma'] * linear(mixed, f'{block}.attn.proj')
        inner = F.gelu(linear(norm(h, f'{block}.norm2'), f'{block}.mlp.fc1'))
        h = h + state[f'{block}.ls2.gamma'] * linear(inner, f'{block}.mlp.fc2')
    return norm(h, 'norm')[:, 0]


@pytest.fixture(scope='module')
def state():
    return random_state()


@pytest.fixture(scope='module')
def weights(state, tmp_path_factory):
    path = tmp_path_factory.mktemp('dinov2') / 'random.pth'
    torch.save(state, path)
    return path


@pytest.fixture
def small(monkeypatch):
    """Take ViT-S/14 in place of ViT-L/14."""
    pytest.importorskip('timm')
    monkeypatch.setattr('score.dinov2.ARCHITECTURE', 'vit_small_patch14_dinov2')


def pictures(n=3, size=32):
    noise = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return (F.interpolate(noise, size=size, mode='bicubic').clamp(0, 1) * 255).to(torch.uint8)


def their_input(images):
    """Prepare images as dgm-eval does: Pillow's bicubic, to a tensor, normalised with the moments of ImageNet."""
    transform = v2.Compose([
        v2.Resize((224, 224), v2.InterpolationMode.BICUBIC), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])  # fmt: skip
    pixels = images.permute(0, 2, 3, 1).numpy()
    return torch.stack([transform(Image.fromarray(image).convert('RGB')) for image in pixels])


@pytest.mark.parametrize('size', [8, 32, 224, 300])
def test_images_are_prepared_as_by_dgm_eval(size):
    images = pictures(size=size)
    assert torch.allclose(dinov2_input(images), their_input(images), atol=1e-6)
    assert torch.equal(dinov2_input(images.float() / 255), dinov2_input(images))
    grey = images[:, :1]
    assert torch.equal(dinov2_input(grey), dinov2_input(grey.expand(-1, 3, -1, -1)))


def test_features_are_those_of_the_definition(small, weights, state):
    net = FEATURE_NETS['dinov2'](weights, sha256='')
    images = pictures()
    features, logits = net(images)
    expected = their_features(state, their_input(images))
    assert features.shape == (3, DIM) and features.dtype == torch.float32 and logits.shape == (3, 0)
    assert (features - expected).abs().max() < 1e-4 * expected.abs().max()
    assert features.std(0).mean() > 1e-3  # the images matter
    bf16 = FEATURE_NETS['dinov2'](weights, precision='bf16', sha256='')(images)[0]
    assert bf16.dtype == torch.float32 and 0 < (bf16 - expected).abs().max() < 0.1 * expected.abs().max()
    assert net.made | {'weights_hash': ''} == {
        'feature_net': 'dinov2', 'weights_hash': '', 'protocol': 'dgm-eval', 'precision': 'fp32'
    }  # fmt: skip
    assert net.label('FID') == 'FID(dinov2)'


def test_the_published_network_is_that_of_vit_l():
    timm = pytest.importorskip('timm')
    with torch.device('meta'):
        vit = timm.create_model('vit_large_patch14_dinov2', img_size=224, num_classes=0)
    shapes = {name: tuple(value.shape) for name, value in vit.state_dict().items()}
    assert shapes['blocks.23.mlp.fc1.weight'] == (4096, 1024) and len(shapes) == 342 and vit.num_features == 1024
    kinds = [{re.sub(r'blocks\.\d+', 'blocks', name) for name in side} for side in (shapes, random_state())]
    assert kinds[0] == kinds[1] - {'mask_token'}


@pytest.mark.parametrize('damage', ['fewer', 'more', 'other', 'list'])
def test_other_weights_are_refused(small, tmp_path, state, damage):
    changed = {
        'fewer': {key: value for key, value in state.items() if key != 'norm.bias'},
        'more': state | {'register_tokens': torch.zeros(1, 4, DIM)},
        'other': {'fc.weight': torch.zeros(1)},
        'list': [1, 2],
    }[damage]
    torch.save(changed, tmp_path / 'other.pth')
    with pytest.raises(ScoreError, match="other.pth: not DINOv2 ViT-L/14's state dict; get https://dl.fb") as error:
        load_dinov2(tmp_path / 'other.pth', sha256='')
    assert '\n' not in str(error.value)


def test_weights_are_checked_and_found_in_the_hub_cache(small, tmp_path, monkeypatch, weights):
    with pytest.raises(ScoreError, match=f'sha256 begins with [0-9a-f]{{8}}, not {WEIGHTS_SHA256[:8]}: truncated'):
        load_dinov2(weights)
    with pytest.raises(ScoreError, match='none.pth: no such file; get the DINOv2 weights from https://dl.fbai'):
        load_dinov2(tmp_path / 'none.pth')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))

    def offline(_):
        raise URLError('no route to host')

    monkeypatch.setattr(torch.hub, 'urlopen', offline)
    with pytest.raises(ScoreError, match='no DINOv2 weights .*no route to host') as error:
        load_dinov2()
    place = tmp_path / 'checkpoints' / WEIGHTS_NAME
    assert f'get {WEIGHTS_URL} elsewhere and put it at {place}, or give its path' in str(error.value)
    place.symlink_to(weights)
    assert len(load_dinov2(sha256='')[1]) == 64


def test_without_timm_one_line_says_what_to_install(here, cli, monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    npz_of(torch.from_numpy(random_images(4, 3, 8, 8)), here / 'drawn.npz')
    status, _, error = cli(*TINY, '--eval', '--images=drawn.npz', '--feature_net=dinov2', '--metrics=fid')
    assert status == 1 and 'DINOv2 needs a package: pip install -r requirements-dinov2.txt' in one_line(error)


def classless():
    return replace(small_net(name='dinov2', protocol='dgm-eval'), num_classes=0, head=lambda x: (x, x[:, :0]))


@pytest.mark.filterwarnings('ignore:KID on subsets')
def test_a_network_without_classes_has_no_inception_score():
    real = build_statistics(classless(), small_images(80, 1).split(40), 80)
    with pytest.warns(UserWarning, match='no IS: dinov2 tells no classes'):
        result = feed(Scorer(classless(), 60), small_images(60, 2), 60).result(real)
    assert result['IS'] is None and result['FID'] > 0 and result['KID'] is not None
    with pytest.raises(ScoreError, match='dinov2 tells no classes, which is needs'):
        Scorer(classless(), 60, metrics=['is'])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_images_are_scored_by_it(small, here, cli, weights, monkeypatch):
    original = score.FEATURE_NETS['dinov2']
    monkeypatch.setitem(score.FEATURE_NETS, 'dinov2', lambda *a, **k: original(*a, **k, sha256=''))
    npz_of(torch.from_numpy(random_images(6, 3, 8, 8)), here / 'drawn.npz')
    npz_of(torch.from_numpy(random_images(7, 3, 8, 8)), here / 'real.npz')
    argv = ['--eval', '--images=drawn.npz', '--fid_cache=real.npz', '--feature_net=dinov2', '--device=cpu']
    status, out, error = cli(*argv, f'--dinov2_weights={weights}')
    assert status == 0, error
    assert 'drawn.npz: FID(dinov2):' in out and 'KID(dinov2):' in out and 'dgm-eval protocol' in out
    assert 'no IS: dinov2 tells no classes' in error and (here / 'real.dinov2.npz').exists()
