"""Labels and classifier-free guidance, from the network to the command line."""

import copy
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from absl.testing import flagsaver
from conftest import TINY
from runs import config_of, load, one_line

import dataset
import main
import train
from diffusion import GaussianDiffusionSampler, Guidance
from draw import walk
from model import UNet
from networks.context_unet import ContextUNet
from networks.point_mlp import PointMLP
from process.parameterisations import PARAMETERISATIONS
from run import build, inputs
from run.restore import restore

T = 10


# name -> function that makes a network of 3 labels
NETS = {
    'unet': lambda num_classes: UNet(T, 32, [1, 2], [1], 1, 0.0, img_channels=1, num_classes=num_classes),
    'context_unet': lambda num_classes: ContextUNet(T, 32, [1, 1], img_size=8, num_classes=num_classes),
    'point_mlp': lambda num_classes: PointMLP(T, 32, num_classes=num_classes),
}


@pytest.fixture(params=NETS, scope='module')
def kind(request):
    return request.param


@pytest.fixture(scope='module')
def net(kind):
    """Make a network of 3 labels in which every weight has an effect."""
    torch.manual_seed(0)
    net = NETS[kind](3).eval()
    for p in net.parameters():
        if p.requires_grad and kind == 'unet':  # some of its weights start near zero
            torch.nn.init.normal_(p, std=0.1)
    return net


@pytest.fixture
def x(kind):
    shape = (4, 2) if kind == 'point_mlp' else (4, 1, 8, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


Y = torch.tensor([0, 1, 2, 2])
NULL = torch.full((4,), 3)


def test_labels_matter_and_none_is_the_null_label(net, x):
    t = torch.tensor([0, 3, 5, 9])
    with torch.no_grad():
        assert torch.equal(net(x, t), net(x, t, NULL))
        assert (net(x, t, Y) - net(x, t)).abs().flatten(1).amax(dim=1).min() > 1e-3


def test_without_labels_there_is_no_extra_key_and_none_is_taken(kind, x):
    plain, labelled = (NETS[kind](n) for n in (None, 3))
    extra = [key for key in labelled.state_dict() if key not in plain.state_dict()]
    assert extra and all(key.startswith('label_embed') for key in extra)
    assert [key for key in labelled.state_dict() if key not in extra] == list(plain.state_dict())
    if kind == 'unet':  # after pytorch-ddpm's keys
        assert list(labelled.state_dict())[-1:] == extra == ['label_embedding.weight']
    with pytest.raises(ValueError, match='takes no labels'):
        plain(x, torch.zeros(4, dtype=torch.int64), Y)


def test_no_label_leaks_gradient_into_the_others(kind, net, x):
    """A label has its own row of an embedding, or its own column of the layer that takes it one-hot."""
    rows = {
        'unet': lambda: [net.label_embedding.weight.grad],
        'context_unet': lambda: [embed[0].weight.grad.T for embed in net.label_embeds],
        'point_mlp': lambda: [embedding.weight.grad for embedding in net.label_embeddings],
    }
    for label in (1, 3):
        net.zero_grad()
        net(x, torch.zeros(4, dtype=torch.int64), torch.full((4,), label)).square().mean().backward()
        for gradient in rows[kind]():
            touched = {row for row in range(len(gradient)) if (gradient[row] != 0).any()}
            assert touched == ({label} & set(range(len(gradient))))  # one-hot: 'no label' has no column


@pytest.mark.parametrize('mean_type', PARAMETERISATIONS)
@pytest.mark.parametrize('eta', [0.0, 1.0])
def test_guided_sampling_is_two_passes_combined(net, x, mean_type, eta):
    def chain(model, y=None):
        sampler = GaussianDiffusionSampler(model, 0.01, 0.3, T, 8, mean_type, steps=5, eta=eta)
        torch.manual_seed(2)
        return list(sampler.trajectory(x, y))[-1][1]

    def by_hand(x_t, t, y):
        return 2.5 * net(x_t, t, y) - 1.5 * net(x_t, t, NULL)

    torch.testing.assert_close(chain(Guidance(net, 2.5, 3), Y), chain(by_hand, Y), rtol=1e-5, atol=1e-5)
    assert torch.equal(chain(Guidance(net, 1, 3), Y), chain(net, Y))
    assert torch.equal(chain(Guidance(net, 0, 3), Y), chain(net))


def test_guidance_1_and_0_take_one_pass_and_others_one_of_twice_the_batch():
    sizes, x = [], torch.zeros(4, 2)

    def counting(x_t, t, y):
        sizes.append(len(x_t))
        return x_t

    for w in (0, 1, 2):
        Guidance(counting, w, 3)(x, torch.zeros(4, dtype=torch.int64), Y)
    assert sizes == [4, 4, 8]


def test_an_interval_guides_its_own_timesteps_alone():
    def net(x, t, y):
        return x * y.view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1)

    x, y, guided = torch.randn(4, 1, 2, 3), torch.tensor([1, 2, 1, 2]), torch.arange(T) > 4
    for w in (0, 1, 2.5):
        plain, within = Guidance(net, w, 3), Guidance(net, w, 3, guided)
        everywhere = Guidance(net, w, 3, torch.ones(T, dtype=torch.bool))
        mixed = torch.tensor([0, 9, 4, 5])
        inside = (mixed > 4).view(-1, 1, 1, 1)
        assert torch.equal(everywhere(x, mixed, y), plain(x, mixed, y))
        assert torch.equal(within(x, mixed, y), torch.where(inside, plain(x, mixed, y), net(x, mixed, y)))


def test_an_interval_is_one_of_sigma_and_belongs_to_records_and_samples(tmp_path, cli):
    argv = [f'--logdir={tmp_path}', '--precision=fp32', '--labels=0', '--guidance=300', '--num_images=4']
    assert cli(*TINY, '--cond', '--train', '--lr=0.02', '--ema_decay=0', '--p_uncond=0.5', *argv[:1])[0] == 0

    def drawn(*flags):
        status, out, error = cli('--sample', *argv, *flags)
        assert status == 0, error
        return np.load(tmp_path / 'samples' / 'samples.npz')['arr_0'], out

    sampler = GaussianDiffusionSampler(None, 1e-4, 0.5, 8)
    sigma = (1 / sampler.alphas_bar - 1).sqrt().tolist()
    interval = f'{(sigma[2] + sigma[3]) / 2},{(sigma[5] + sigma[6]) / 2}'
    always, _ = drawn()
    everywhere, out = drawn('--guidance_interval=0,inf')
    assert np.array_equal(always, everywhere) and 'held samples of other guidance_interval' in out
    some, _ = drawn(f'--guidance_interval={interval}')
    assert (some != always).any()
    assert drawn('--guidance=0') and 'arr_1' not in np.load(tmp_path / 'samples' / 'samples.npz')
    drawn('--guidance=0', f'--guidance_interval={interval}')  # outside it labels count
    assert np.load(tmp_path / 'samples' / 'samples.npz')['arr_1'].tolist() == [0] * 4
    config = config_of(*TINY, '--cond', f'--guidance_interval={interval}')
    config.num_classes = 10
    assert build.sampler(config, None).model.guided.nonzero().flatten().tolist() == [3, 4, 5]
    assert np.array_equal(drawn('--guidance=1', '--guidance_interval=0,1')[0], drawn('--guidance=1')[0])
    for config.guidance_interval in ('1', '2,1', 'a,b', '-1,2', 'nan,1'):
        with pytest.raises(ValueError, match='must be LOW,HIGH'):
            build.sampler(config, None)
    status, _, error = cli('--sample', *argv, '--guidance_interval=1')
    assert status == 2 and 'must be LOW,HIGH' in one_line(error)
    assert 'has no timestep: sigma goes from' in cli('--sample', *argv, '--guidance_interval=50,60')[2]


def test_labels_are_left_out_at_the_rate_asked_for(tmp_path):
    config = config_of(*TINY, '--cond', f'--logdir={tmp_path}', '--p_uncond=0.25', '--batch_size=64')
    run = train.Run(inputs.fit(config, dataset.load('digits', '', 8)))
    seen = []
    run.trainer.model.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    torch.manual_seed(0)
    for _ in range(20):
        run.update(torch.zeros(64, 1, 8, 8), torch.full((64,), 7))
    seen = torch.cat(seen)
    assert set(seen.tolist()) == {7, 10} and (seen == 10).float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_the_linear_schedule_falls_from_1():
    config = SimpleNamespace(p_uncond=0.1, p_uncond_schedule='linear', total_steps=101)
    assert [train.p_uncond(config, step) for step in (0, 50, 100, 200)] == pytest.approx([1, 0.55, 0.1, 0.1])
    config.p_uncond_schedule = 'constant'
    assert train.p_uncond(config, 0) == 0.1


def test_micro_batches_keep_each_label_with_its_image(tmp_path):
    gradients = []
    for parts in (1, 4):
        config = config_of(*TINY, '--cond', f'--logdir={tmp_path}', f'--grad_accum={parts}')
        run = train.Run(inputs.fit(config, dataset.load('digits', '', 8)))
        torch.manual_seed(0)
        run.update(torch.linspace(-1, 1, 512).view(8, 1, 8, 8), torch.arange(8))
        gradients.append(torch.cat([p.grad.flatten() for p in run.trained]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_steps_of_an_unconditional_run_are_untouched(tmp_path):
    """Label dropout draws its random numbers after everything else in the step."""
    run = train.Run(config_of(*TINY, f'--logdir={tmp_path}'))
    other = copy.deepcopy(run.net.state_dict())
    torch.manual_seed(0)
    loss, _ = run.update(torch.zeros(8, 1, 8, 8))
    run.net.load_state_dict(other)
    torch.manual_seed(0)
    assert torch.equal(run.trainer(torch.zeros(8, 1, 8, 8)).mean(), loss)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Train a conditional run for a few steps, then enlarge its label embeddings as many steps would."""
    folder = tmp_path_factory.mktemp('trained') / 'run'
    wide = [flag.replace('--ch_mult=1', '--ch_mult=2') for flag in TINY]  # at 32 channels the norm cancels embeddings
    argv = [*wide, '--train', '--cond', '--lr=0.02', '--warmup=0', '--total_steps=20', '--sample_step=20']
    with flagsaver.flagsaver():
        assert main.main(main.parse_flags(['main.py', *argv, '--ema_decay=0', f'--logdir={folder}'])) == 0
    state = load(folder)
    for part in ('net_model', 'ema_model'):
        torch.nn.init.normal_(state[part]['label_embedding.weight'], std=3)
    torch.save(state, folder / 'ckpt.pt')
    return folder


def test_training_and_drawing_from_the_command_line(trained, tmp_path, cli):
    assert load(trained)['config']['num_classes'] == 10
    assert load(trained)['net_model']['label_embedding.weight'].shape == (11, 128)
    assert (trained / 'sample' / '20.png').exists()
    images = {}
    for name, flags in {
        'all': [],
        'three': ['--labels=3'],
        'some': ['--labels=3,1'],
        'guided': ['--labels=3', '--guidance=4'],
        'free': ['--guidance=0'],
    }.items():
        out = tmp_path / name
        argv = ['--sample', f'--logdir={trained}', '--num_images=14', f'--out={out}', '--precision=fp32', *flags]
        assert cli(*argv)[0] == 0
        images[name] = np.load(out / 'samples.npz')['arr_0'].astype(int)
    # Image i has the requested labels in turn, and the same noise with any label.
    assert abs(images['all'][[3, 13]] - images['three'][[3, 13]]).max() <= 1
    assert abs(images['some'][::2] - images['three'][::2]).max() <= 1
    for a, b in (('all', 'three'), ('three', 'guided'), ('three', 'free')):
        assert abs(images[a] - images[b]).max() > 1, (a, b)


def test_a_conditional_run_resumes_and_another_kind_does_not(trained, tmp_path, cli):
    run = shutil.copytree(trained, tmp_path / 'run')
    argv = [f'--flagfile={run / "flagfile.txt"}', f'--logdir={run}', '--train', '--total_steps=22']
    status, _, error = cli(*argv, '--nocond')
    assert status == 1 and '--num_classes=0 (trained with 10)' in error
    assert cli(*argv)[0] == 0 and load(run)['step'] == 22


@pytest.mark.parametrize('flags, phrase', [
    (['--labels=11'], '--labels=11: the classes are 0 1 2 ... 9'),
    (['--labels=-1'], 'the classes are 0 1 2 ... 9'),
    (['--labels=cat'], '--labels=cat: the classes are 0 1 2 ... 9'),
])  # fmt: skip
def test_labels_that_do_not_exist(trained, cli, flags, phrase):
    status, _, error = cli('--sample', f'--logdir={trained}', *flags)
    assert status == 2 and phrase in error.strip().splitlines()[-1]


def test_labels_where_there_are_none(tmp_path, cli, folder_of_images):
    assert cli(*TINY, '--train', f'--logdir={tmp_path / "run"}')[0] == 0
    for flag, need in (('--guidance=2', 'trained with --cond, or --guide_by'), ('--labels=1', 'trained with --cond\n')):
        status, _, error = cli('--sample', f'--logdir={tmp_path / "run"}', flag)
        assert status == 2 and f'need a checkpoint {need}' in error.replace('needs', 'need')
    argv = [*TINY, '--train', '--cond', f'--logdir={tmp_path / "other"}']
    status, _, error = cli(*argv, f'--dataset={folder_of_images / "cat"}', '--batch_size=4')
    assert status == 1 and '--cond with 0 classes' in error
    status, _, error = cli(*argv, '--num_classes=5')
    assert status == 1 and '--cond with 5 classes: digits has 10' in error
    status, _, error = cli(*TINY, '--train', '--guidance=2', f'--logdir={tmp_path / "other"}')
    assert status == 1 and 'trained with --cond' in error


def test_image_i_does_not_depend_on_the_batch_with_labels_and_guidance(trained):
    argv = [f'--logdir={trained}', '--precision=fp32', '--guidance=3']
    config, net, _ = restore(config_of(*argv), {'guidance'})
    drawn = {}
    for size in (12, 5):
        config.sample_batch_size = size
        for chunk, x_0 in walk.draw(config, net, list(range(12))):
            for i, image in zip(chunk, x_0, strict=True):
                torch.testing.assert_close(image, drawn.setdefault(i, image), atol=1e-5, rtol=0)
