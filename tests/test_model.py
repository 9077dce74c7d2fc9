"""Compare the U-Net with the outputs and state dicts of pytorch-ddpm's and the official network."""

import json

import pytest
import torch
from conftest import GOLDEN, largest_error
from torch.nn import functional as F

import model
from model import AttnBlock, Concatenate, UNet, group_norm, upsample
from networks.context_unet import ContextUNet, DownBlock, RearrangePoolBlock, ResidualConvBlock, UpBlock
from networks.point_mlp import PointMLP


def test_output_equals_pytorch_ddpm(reference, reference_net):
    with torch.no_grad():
        assert largest_error(reference_net(reference['x'], reference['t']), reference['y']) < 1e-5


@pytest.mark.parametrize('arch', ['pytorch_ddpm', 'official'])
def test_cifar10_state_dict(arch):
    with torch.device('meta'):
        net = UNet(1000, 128, [1, 2, 2, 2], [1], 2, 0.1, arch=arch)
    ours = {key: list(value.shape) for key, value in net.state_dict().items()}
    wanted = json.loads((GOLDEN / 'pytorch_ddpm_cifar10_state_dict.json').read_text())
    assert list(ours) == list(wanted) and ours == wanted  # in the same order, by which Adam numbers its state
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 35_746_307
    official = json.loads((GOLDEN / 'official_cifar10_state_dict.json').read_text())
    shapes = [shape for key, shape in ours.items() if key != 'time_embedding.timembedding.0.weight']
    assert sorted(shapes) == sorted(official.values())


@pytest.mark.parametrize('arch, attn_is_zero', [('pytorch_ddpm', False), ('official', True)])
def test_initial_weights(arch, attn_is_zero):
    torch.manual_seed(0)
    net = UNet(10, 32, [1, 2], [1], 1, 0.1, arch=arch)
    for key, value in net.state_dict().items():
        if key.endswith('bias'):
            assert (value == 0).all()
        elif value.ndim == 4 or 'temb_proj' in key:
            fan_in, fan_out = value[0].numel(), value.shape[0] * value[0, 0].numel()
            bound = (6 / (fan_in + fan_out)) ** 0.5  # Xavier-uniform, with std bound / sqrt(3)
            ends_near_zero = 'block2.3' in key or key == 'tail.2.weight' or ('attn.proj.' in key and attn_is_zero)
            std = bound / 3**0.5 * (1e-5 if ends_near_zero else 1)
            assert value.std().item() == pytest.approx(std, rel=0.1), key


@pytest.mark.parametrize('channels, size', [(1, 8), (3, 12)])
def test_output_has_the_shape_of_the_input(channels, size):
    net = UNet(10, 32, [1, 1, 2], [2], 1, 0.0, img_channels=channels, img_size=size)
    x = torch.randn(2, channels, size, size)
    assert net(x, torch.tensor([0, 9])).shape == x.shape


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'attn': [4]}, 'attn must name levels 0 to 3'),
        ({'ch': 48}, 'ch must be a multiple of 32'),
        ({'ch_mult': []}, 'ch_mult must be one or more'),
        ({'ch_mult': [1, 0, 2, 2]}, 'ch_mult must be one or more'),
        ({'num_res_blocks': 0}, 'num_res_blocks must be at least 1'),
        ({'dropout': 1.0}, 'dropout must be in'),
        ({'img_channels': 2}, '1 or 3 channels'),
        ({'img_size': 28}, 'img_size must be divisible by 8'),
        ({'arch': 'dit'}, 'arch must be one of pytorch_ddpm'),
        ({'head_dim': 24}, 'head_dim must divide the (64|32) channels'),
        ({'head_dim': 128}, 'head_dim must divide the (64|32) channels'),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    given = {'T': 10, 'ch': 32, 'ch_mult': [1, 2, 2, 2], 'attn': [1], 'num_res_blocks': 2, 'dropout': 0.1}
    with pytest.raises(ValueError, match=message):
        UNet(**{**given, **arguments})


def test_the_group_norm_of_compiled_gpus_is_torchs_and_keeps_channels_last():
    torch.manual_seed(0)
    x = (3 * torch.randn(2, 64, 5, 6, dtype=torch.float64) + 7).to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = (torch.randn(64, dtype=torch.float64, requires_grad=True) for _ in range(2))
    out, expected = group_norm(x, 32, weight, bias, 1e-5), F.group_norm(x, 32, weight, bias, 1e-5)
    direction = torch.randn_like(out)
    gradients, wanted = (torch.autograd.grad(y, (x, weight, bias), direction) for y in (out, expected))
    assert all(largest_error(*pair) < 1e-12 for pair in [(out, expected), *zip(gradients, wanted, strict=True)])
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)
    x = (x.detach().float() * 100).bfloat16()  # as under autocast: the output has the precision of the weights
    out = group_norm(x, 32, weight.float(), bias.float(), 1e-5)
    assert out.dtype == torch.float32
    assert largest_error(out, F.group_norm(x.double(), 32, weight, bias, 1e-5)) < 1e-5


def test_what_is_compiled_for_gpus_computes_the_same(monkeypatch):
    torch.manual_seed(0)
    net = UNet(T=10, ch=64, ch_mult=[1, 2], attn=[1], num_res_blocks=1, dropout=0).double()
    for p in net.parameters():  # else the last layers, near zero at first, hide the others
        torch.nn.init.normal_(p, std=0.05)
    x, t = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([2, 7])
    direction, trained = torch.randn_like(x), [p for p in net.parameters() if p.requires_grad]

    def results():
        out = net(x, t)
        return out, torch.cat([g.flatten() for g in torch.autograd.grad(out, trained, direction)])

    expected = results()
    monkeypatch.setattr(model, 'is_compiled_for_gpu', lambda x: True)
    assert all(0 < largest_error(*pair) < 1e-11 for pair in zip(results(), expected, strict=True))


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_layouts_of_what_is_compiled_for_gpus(layout):
    a, b = (torch.randn(2, ch, 4, 6).to(memory_format=layout).requires_grad_() for ch in (3, 5))
    out = Concatenate.apply(a, b)
    assert torch.equal(out, torch.cat([a, b], dim=1))
    direction = torch.randn_like(out)
    gradients = torch.autograd.grad(out, (a, b), direction)
    assert all(torch.equal(*pair) for pair in zip(gradients, direction.split([3, 5], dim=1), strict=True))
    assert all(gradient.is_contiguous(memory_format=layout) for gradient in gradients)
    assert torch.equal(upsample(a), F.interpolate(a, scale_factor=2))
    assert upsample(a).is_contiguous(memory_format=torch.channels_last)


def test_attention_of_several_heads_is_one_head_on_each_share_of_the_channels():
    torch.manual_seed(0)
    x = torch.randn(2, 64, 4, 4)
    block = AttnBlock(64, 1e-5, head_dim=16)
    q, k, v = (proj(block.group_norm(x)).flatten(2) for proj in (block.proj_q, block.proj_k, block.proj_v))
    heads = []
    for part in range(0, 64, 16):
        a, b, c = (each[:, part : part + 16] for each in (q, k, v))  # [2, 16, 16]
        weights = torch.softmax(torch.einsum('bdi,bdj->bij', a, b) / 16**0.5, dim=2)
        heads.append(torch.einsum('bij,bdj->bdi', weights, c))
    expected = x + block.proj(torch.cat(heads, dim=1).view(x.shape))
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
    single = AttnBlock(64, 1e-5)
    assert {k: v.shape for k, v in single.state_dict().items()} == {k: v.shape for k, v in block.state_dict().items()}


# --- ContextUNet


def test_the_blocks_of_the_context_unet():
    x = torch.randn(2, 8, 6, 4)
    # Space to depth: each 2x2 square of a channel becomes four channels.
    squares = x.reshape(2, 8, 3, 2, 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 32, 3, 2)
    pool = RearrangePoolBlock(8, groups=4)
    assert torch.equal(pool(x), pool[1](squares)) and pool(x).shape == (2, 8, 3, 2)
    block = ResidualConvBlock(8, 16, groups=4)
    assert torch.equal(block(x), block.conv1(x) + block.conv2(block.conv1(x)))
    assert DownBlock(8, 16, groups=4)(x).shape == (2, 16, 3, 2)
    assert UpBlock(8, 16, groups=4)(x, x).shape == (2, 16, 12, 8)


def test_the_way_up_is_scaled_by_the_label_and_shifted_by_the_time():
    torch.manual_seed(0)
    T, x, y, t = 50, torch.randn(3, 1, 8, 8), torch.tensor([2, 0, 4]), torch.tensor([0, 7, 49])
    net = ContextUNet(T, 32, [1, 1, 2], img_size=8, num_classes=4)  # 4 means no label
    seen = []
    for up in net.ups:
        up.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        up.register_forward_hook(lambda module, args, output: seen.append(output))
    out = net(x, t, y)
    assert out.shape == x.shape and [up.shape[1:] for up in seen[::2]] == [(64, 2, 2), (32, 4, 4)]
    frequencies = torch.tensor([10000 ** (-i / 3) for i in range(4)])
    angles = (t / T)[:, None] * frequencies
    one_hot = torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    h = net.downs[1](net.downs[0](net.head(x)))
    for i, before in enumerate((net.latent(h), seen[1])):
        c, shift = net.label_embeds[i](one_hot), net.time_embeds[i](torch.cat([angles.sin(), angles.cos()], 1))
        torch.testing.assert_close(seen[2 * i], c * before + shift)


def test_the_context_unet_of_the_course():
    net = ContextUNet(150, 64, [1, 1, 2], num_classes=10)
    norms = [module for module in net.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {8, 32}
    assert net(torch.zeros(1, 1, 28, 28), torch.tensor([0])).shape == (1, 1, 28, 28)
    for arguments, message in (
        ({'ch': 48}, 'ch must be a multiple of 32'),
        ({'img_size': 30}, 'img_size must be divisible by 4'),
        ({'img_channels': 2}, '1 or 3 channels'),
    ):
        with pytest.raises(ValueError, match=message):
            ContextUNet(**{'T': 10, 'ch': 32, 'ch_mult': [1, 1, 2], **arguments})


# --- PointMLP


def test_the_mlp_is_three_hidden_layers_each_told_the_step_and_the_label():
    torch.manual_seed(0)
    net = PointMLP(10, num_classes=2)
    weights = {key: value.double().numpy() for key, value in net.state_dict().items()}
    x, t, y = torch.randn(4, 2), torch.tensor([0, 3, 9, 9]), torch.tensor([0, 1, 2, 2])
    h = x.double().numpy()
    for i in range(3):
        h = h @ weights[f'hidden.{i}.weight'].T + weights[f'hidden.{i}.bias']
        h = h + weights[f'step_embeddings.{i}.weight'][t] + weights[f'label_embeddings.{i}.weight'][y]
        assert h.shape == (4, 128)
        h = h.clip(min=0)
    h = h @ weights['tail.weight'].T + weights['tail.bias']
    torch.testing.assert_close(net(x, t, y).double(), torch.from_numpy(h), atol=1e-5, rtol=1e-5)
