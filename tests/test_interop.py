"""Import and export weights, against the goldens and diffusers. A bad file leaves nothing behind."""

import copy
import hashlib
import http.server
import itertools
import json
import os
import pickle
import re
import shutil
import threading
from types import SimpleNamespace

import diffusers
import pytest
import torch
from conftest import TINY, golden, largest_error
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from pipelines import DDPM, described, share_noise, small_unet
from runs import Forked, config_of

import interop
from draw import walk
from draw.noise import NOISES
from interop import drawing_code, formats, pipeline, published, scheduler
from process.schedules import SCHEDULES, make_betas
from run import checkpoint
from run.checkpoint import CheckpointError
from run.config import replace
from run.errors import UsageError
from run.restore import restore

NETWORKS = [
    ('pytorch_ddpm', [1, 2], [1], 1, 3, 0, 0),
    ('pytorch_ddpm', [1, 2, 1], [0, 2], 2, 1, 4, 0),
    ('pytorch_ddpm', [1], [], 1, 3, 0, 0),
    ('official', [1, 2], [0, 1], 2, 3, 3, 0),
    ('official', [1, 1, 2], [], 1, 1, 0, 0),
    ('pytorch_ddpm', [1, 2], [0, 1], 1, 1, 0, 16),
]


def state_dict(name):
    arrays = golden(name)
    return {key[3:]: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith('sd/')}


def outputs(net, arrays):
    with torch.no_grad():
        return net(torch.from_numpy(arrays['x']), torch.from_numpy(arrays['t']))


def restored(logdir, **options):
    return restore(SimpleNamespace(**{**RESTORING, 'logdir': str(logdir), **options}), set())


# What `restore` needs besides a checkpoint's config.
RESTORING = {
    'ckpt': '', 'weights': 'ema', 'device': 'cpu', 'labels': 'all', 'guidance': 1.0, 'batch_size': 1, 'grad_accum': 1,
    'compile': 'off', 'ema_decay': 0.9999, 'figure': None, 'precision': 'fp32', 'antithetic_t': False, 'dropout': 0.0,
    'moments': None, 'eval': False, 'stats': False, 'nll': False, 'guidance_interval': '', 'guide_by': '',
}  # fmt: skip


@pytest.mark.parametrize(
    'name, legacy', [('pytorch_ddpm_unet_a', False), ('official_unet_a', False), ('official_unet_a', True)]
)
def test_the_reference_networks_are_imported(cli, tmp_path, name, legacy):
    torch.save(state_dict(name), tmp_path / 'model.ckpt', _use_new_zipfile_serialization=not legacy)
    status, out, err = cli('--import_ckpt', tmp_path / 'model.ckpt', '--logdir', tmp_path / 'run', '--img_size=16')
    assert (status, err) == (0, '') and 'run of' in out
    config, net, step = restored(tmp_path / 'run')
    assert (config.ch_mult, config.attn, config.num_res_blocks, step) == ([1, 2], [1], 1, 0)
    arrays = golden(name)
    assert largest_error(outputs(net, arrays), torch.from_numpy(arrays['y'])) < 1e-5


def test_the_lists_of_ddim_give_last_and_averaged_weights(cli, tmp_path):
    last, averaged = ({key: value * scale for key, value in state_dict('official_unet_a').items()} for scale in (2, 1))
    module = {f'module.{key}': value for key, value in last.items()}
    torch.save([module, {'state': {}, 'param_groups': []}, 3, 500, averaged], tmp_path / 'ckpt.pth')
    torch.save([module, {'state': {}, 'param_groups': []}, 3, 500], tmp_path / 'no_ema.pth')
    source = interop.read(str(tmp_path / 'ckpt.pth'))
    assert torch.equal(source.net['head.weight'], last['conv_in.weight'])
    assert torch.equal(source.ema['head.weight'], averaged['conv_in.weight'])
    assert torch.equal(interop.read(str(tmp_path / 'no_ema.pth')).ema['head.weight'], last['conv_in.weight'])


def test_an_imported_run_trains_samples_and_is_a_checkpoint_like_any_other(cli, tmp_path):
    assert cli(*TINY, '--train', '--logdir', tmp_path / 'there')[0] == 0
    state = checkpoint.load(tmp_path / 'there' / 'ckpt.pt')
    torch.save({key: state[key] for key in ('net_model', 'ema_model')}, tmp_path / 'theirs.pt')  # without a config
    run = tmp_path / 'here'
    flags = [flag for flag in TINY if not flag.startswith(('--ch', '--attn', '--num_res', '--T='))]
    assert cli(*flags, '--import_ckpt', tmp_path / 'theirs.pt', '--logdir', run)[0] == 0
    begun = checkpoint.load(run / 'ckpt.pt')
    for kind in ('net_model', 'ema_model'):
        assert all(torch.equal(begun[kind][key], state[kind][key]) for key in state[kind])
    assert (begun['step'], begun['optim']['state'], begun['config']['T']) == (0, {}, 8)
    assert cli('--flagfile', run / 'flagfile.txt', '--train', '--sample')[0] == 0
    assert checkpoint.load(run / 'ckpt.pt')['step'] == 4 and (run / 'samples' / 'grid.png').exists()
    status, _, err = cli(*flags, '--import_ckpt', tmp_path / 'theirs.pt', '--logdir', run)
    assert status == 1 and 'choose another --logdir' in err


@pytest.mark.parametrize('arch, ch_mult, attn, num_res_blocks, channels, num_classes, head_dim', NETWORKS)
def test_exports_equal_in_diffusers_and_come_back_bit_for_bit(
    tmp_path, arch, ch_mult, attn, num_res_blocks, channels, num_classes, head_dim
):
    config, net = described(arch, ch_mult, attn, num_res_blocks, channels, num_classes, head_dim=head_dim)
    pipeline.write(tmp_path, config, net, 'card')
    theirs, info = UNet2DModel.from_pretrained(tmp_path, subfolder='unet', output_loading_info=True)
    assert not any(info.values())
    x, t = torch.randn(3, channels, 8, 8), torch.tensor([0, 17, 39])
    y = torch.tensor([0, num_classes, 1]) if num_classes else None
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        ours = copy.deepcopy(net).to(dtype)
        if arch == 'official' and dtype == torch.float64:  # the float32 tables are rounded in another order
            ours.time_embedding.timembedding[0].weight.copy_(theirs.time_proj(torch.arange(40)))
        with torch.no_grad():
            out = theirs.to(dtype).eval()(x.to(dtype), t, class_labels=y).sample
            assert largest_error(ours(x.to(dtype), t, y), out) < tolerance
    told, weights = pipeline.read(tmp_path)
    assert (
        told.items()
        >= {
            key: getattr(config, key)
            for key in (*DDPM, 'attn', 'ch_mult', 'num_classes')
            if key not in ('net', 'prior')
        }.items()
    )
    ours = net.state_dict()
    assert ours.keys() - weights.keys() == {'time_embedding.timembedding.0.weight'}
    assert all(torch.equal(ours[key], value) for key, value in weights.items())


class Kept:
    """Stands in for a pipeline's PIL images: keeps their arrays by the names they are saved under."""

    drawn = {}

    def __init__(self, images):
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)

    def __getitem__(self, i):
        return self

    def save(self, path):
        self.drawn[path.removesuffix('.png')] = self.images


class SharedNoise:
    """Stands in for `Noise`: gives what torch.randn gives, from which diffusers draws its noise."""

    def __init__(self, seed, indices, shape, device):
        self.shape = len(indices), *shape

    def __call__(self, x=None):
        return torch.randn(self.shape)


def run_of(*flags):
    """Return the smallest config of a run with these flags, and a network for it."""
    small = '--T=12 --beta_1=5e-3 --beta_T=0.6 --img_size=4 --ch=32 --ch_mult=1 --attn= --num_res_blocks=1'
    config = config_of(*small.split(), '--device=cpu', '--precision=fp32', '--compile=off', *flags)
    told = {key: getattr(config, key) for key in ('T', 'num_classes', 'var_type', 'ch_mult', 'attn')}
    return config, described(channels=1, **told)[1]


def errors_of_the_card(folder, flags, monkeypatch):
    """Return {flags named by a comment in a card's code: the difference between what the code and these flags draw}."""
    config, net = run_of(*flags, '--logdir', folder / 'run')
    interop.EXPORTS['diffusers'][0](folder, config, net, 0)
    code = re.search('```python\n(.*?)```', (folder / 'README.md').read_text(), re.S)[1]
    monkeypatch.setitem(NOISES, 'torch', SharedNoise)
    monkeypatch.setattr(DiffusionPipeline, 'numpy_to_pil', staticmethod(Kept))
    monkeypatch.setattr(Kept, 'drawn', drawn := {'PATH': str(folder)})
    preparing, *ways = re.split('^(?=# --sample)', code, flags=re.M)
    exec(preparing, drawn)
    errors = {}
    for way in ways:
        said, name = re.match(r'# (.*)\n.* = (\w+)(?:Scheduler|Pipeline)', way).groups()
        share_noise(monkeypatch)
        exec(way, drawn)
        theirs = drawn[name.lower()]
        share_noise(monkeypatch)
        others = [flag for flag in flags if not flag.startswith('--timesteps')]  # a list given twice is one list
        ((_, x_0),) = walk.draw(run_of(*others, *said.split()[1:])[0], net, list(range(len(theirs))))
        assert theirs.shape == x_0.shape and theirs.std() > 0.01
        errors[said] = largest_error((x_0 / 2 + 0.5).clamp(0, 1), theirs)
    return errors


OTHERS = [
    ['--cond', '--num_classes=3'],
    ['--cond', '--num_classes=3', '--var_type=learned_range', '--loss=hybrid', '--clip_denoised'],
    ['--var_type=learned_range', '--loss=hybrid', '--eta=0', '--sample_steps=6'],
    ['--var_type=fixedsmall', '--spacing=trailing', '--sample_steps=5'],
    ['--var_type=learned_range', '--loss=hybrid', '--spacing=trailing', '--sample_steps=5'],
    ['--eta=0.5', '--clip_denoised', '--sample_steps=6'],
    ['--T=150', '--beta_T=0.05', '--spacing=trailing', '--sample_steps=7', '--var_type=fixedsmall'],
    ['--mean_type=v', '--clip_denoised'],
    ['--mean_type=xstart', '--eta=0', '--clip_denoised', '--sample_steps=5'],
    ['--eta=0', '--schedule=sigmoid', '--sample_steps=6'],
    ['--eta=0', '--mean_type=v', '--schedule=quad_zero_snr', '--sample_steps=6'],
    ['--timesteps=0,3,4,11', '--clip_denoised'],
    ['--timesteps=1,4,11', '--var_type=fixedsmall', '--spacing=quad'],
    ['--timesteps=1,4,11'],
    ['--eps_scale=1.05'],
    ['--mean_type=v', '--schedule=linear_zero_snr'],
]
HIGHER = [
    ['--order=2', '--eta=0'],
    ['--order=2', '--eta=0', '--sample_steps=6', '--clip_denoised', '--spacing=leading'],
    ['--order=2', '--eta=0', '--timesteps=1,4,11', '--spacing=logsnr'],
    ['--order=2', '--eta=0', '--sample_steps=6', '--schedule=sqrt'],
    ['--order=2', '--eta=0', '--sample_steps=5', '--spacing=leading', '--mean_type=v', '--schedule=linear_zero_snr'],
    ['--order=2', '--eta=0.5', '--sample_steps=6'],
    ['--order=2', '--cond', '--num_classes=3', '--sample_steps=6', '--spacing=linspace', '--mean_type=v'],
    ['--order=2', '--var_type=learned_range', '--loss=hybrid', '--sample_steps=5', '--spacing=trailing'],
    ['--order=2', '--sample_steps=6', '--clip_denoised', '--mean_type=xstart'],
    ['--order=3', '--eta=0', '--sample_steps=5', '--spacing=trailing'],
    ['--order=3', '--eta=0', '--sample_steps=6', '--corrector', '--clip_denoised'],
    ['--order=2', '--eta=0', '--sample_steps=5', '--corrector', '--spacing=linspace', '--mean_type=v'],
    ['--order=1', '--eta=0', '--sample_steps=6', '--corrector', '--cond', '--num_classes=3'],
    ['--order=3', '--eta=0', '--T=150', '--beta_T=0.05', '--sample_steps=20', '--corrector'],
]
EVERY = [
    [f'--{clip}clip_denoised', f'--eta={eta}', f'--spacing={spacing}', f'--sample_steps={S}']
    for clip, eta, spacing, S in itertools.product(('', 'no'), (0, 1), ('leading', 'linspace', 'trailing'), (0, 5, 6))
]


@pytest.mark.parametrize('flags', EVERY + OTHERS + HIGHER, ids=' '.join)
def test_the_code_of_the_card_draws_what_sample_draws_or_is_not_there(tmp_path, monkeypatch, flags):
    config, net = run_of(*flags)
    few = {**vars(config), 'sample_steps': min(50, config.T), 'eta': 0.0}
    plain = config.eta == config.order == 1 and not config.timesteps
    misfits = [scheduler.misfit(vars(config)), *([scheduler.misfit(few)] if plain else [])]
    if misfits[0]:
        with pytest.raises(ValueError, match=re.escape(misfits[0])):
            pipeline.write(tmp_path / 'refused', config, net, 'card')
    elif any(misfits):
        assert f'not with diffusers, for {misfits[1]}' in drawing_code.drawing_code(vars(config))
    monkeypatch.setattr(scheduler, 'misfit', lambda config: None)  # to see that what is refused differs
    errors = errors_of_the_card(tmp_path, flags, monkeypatch)
    for (said, error), misfit in zip(errors.items(), misfits, strict=True):
        if not misfit:
            assert error < 1e-4, said
        else:  # with a learned variance, v decides how small the last noise is
            assert error > 1e-4 or 'learned_range' in misfit, (said, misfit)


@pytest.mark.parametrize(
    'flags, name, loaded',
    [
        ([], 'DDPMPipeline', 'DDPMScheduler'),
        (['--eta=0.5'], 'DDIMPipeline', 'DDIMScheduler'),
        (['--order=2', '--eta=0'], 'DDPMPipeline', 'DPMSolverMultistepScheduler'),
        (['--order=2'], 'DDPMPipeline', 'DPMSolverMultistepScheduler'),
        (['--order=3', '--eta=0'], 'DDPMPipeline', 'UniPCMultistepScheduler'),
        (['--order=2', '--eta=0', '--corrector'], 'DDPMPipeline', 'UniPCMultistepScheduler'),
    ],
)
def test_an_export_is_loaded_whole_and_read_back_as_the_sampler_it_was(tmp_path, monkeypatch, flags, name, loaded):
    config, net = run_of('--spacing=trailing', '--sample_steps=6', '--var_type=fixedsmall', '--clip_denoised', *flags)
    pipeline.write(tmp_path, config, net, 'card')
    drawn = DiffusionPipeline.from_pretrained(tmp_path)
    assert (type(drawn).__name__, type(drawn.scheduler).__name__) == (name, loaded)
    sampler = interop.from_pretrained(str(tmp_path), steps=6)
    for key in ('order', 'corrector', 'clip_denoised'):
        assert getattr(sampler, key) == getattr(config, key)
    assert sampler.eta == config.eta or loaded == 'DDIMScheduler'
    if loaded.startswith('DP'):  # along trailing timesteps it needs nothing of the code on the card
        share_noise(monkeypatch)
        drawn.set_progress_bar_config(disable=True)
        images = drawn(2, num_inference_steps=6, output_type='np').images
        share_noise(monkeypatch)
        x_0 = sampler(torch.randn(2, 1, 4, 4), noise=lambda x: torch.randn(x.shape))
        assert largest_error(x_0 / 2 + 0.5, torch.from_numpy(images).permute(0, 3, 1, 2)) < 1e-4


@pytest.mark.parametrize(
    'flags, why',
    [
        (['--order=2', '--eta=0.5'], 'steps of --order=2 have no --eta=0.5: --eta=0 or --order=1 draws so'),
        (['--eps_scale=1.02'], 'no --eps_scale=1.02: --eps_scale=1 draws so'),
        (['--order=2', '--eta=0', '--spacing=logsnr'], 'no --spacing=logsnr: --spacing=leading is its usual one'),
        (['--eta=0', '--timesteps=0,6'], 'DDIMScheduler cannot be told --timesteps: --order=2 can'),
        (['--eta=0.5', '--timesteps=0,6'], 'DDIMScheduler cannot be told --timesteps: --eta=1 can'),
        (
            ['--order=2', '--mean_type=v', '--schedule=linear_zero_snr'],
            'cannot begin at t = 11, where nothing is left of the image: --order=1 can, without --corrector',
        ),
        (['--timesteps=1,6'], 'adds noise in its last step, from t = 1, with --var_type=fixedlarge: --var_type=fixed'),
    ],
)
def test_what_no_scheduler_draws_is_refused_with_a_remedy(tmp_path, flags, why):
    config, net = run_of(*flags)
    with pytest.raises(UsageError, match=re.escape(why)) as raised:
        pipeline.write(tmp_path, config, net, 'card')
    assert '\n' not in str(raised.value) and not os.listdir(tmp_path)


def test_a_solver_of_ones_own_is_refused(tmp_path):
    config, net = run_of()
    with pytest.raises(UsageError, match='none of its schedulers has --order=3m: --order=2 is one that it has'):
        pipeline.write(tmp_path, replace(config, order='3m'), net, 'card')


@pytest.fixture(scope='module')
def theirs():
    return small_unet()


@pytest.mark.parametrize('S', [12, 6, 5])
@pytest.mark.parametrize('spacing', ['leading', 'linspace', 'trailing'])
@pytest.mark.parametrize('clip', [False, True])
@pytest.mark.parametrize('name, variance', [('DDPM', 'fixed_small'), ('DDPM', 'fixed_large'), ('DDIM', None)])
def test_an_imported_pipeline_draws_what_it_draws_itself_or_what_differs_is_said(
    tmp_path, monkeypatch, caplog, theirs, name, variance, clip, spacing, S
):
    said = {'clip_sample': clip, 'timestep_spacing': spacing, **({'variance_type': variance} if variance else {})}
    steps = getattr(diffusers, f'{name}Scheduler')(12, 5e-3, 0.6, **said)
    drawn = getattr(diffusers, f'{name}Pipeline')(theirs, steps)
    drawn.save_pretrained(tmp_path)
    drawn.set_progress_bar_config(disable=True)
    share_noise(monkeypatch)
    images = torch.from_numpy(drawn(2, num_inference_steps=S, output_type='np').images).permute(0, 3, 1, 2)
    sampler = interop.from_pretrained(str(tmp_path), steps=S)
    share_noise(monkeypatch)
    x_T = torch.randn(2, 1, 4, 4)
    error = largest_error(sampler(x_T, noise=lambda x: torch.randn(x.shape)) / 2 + 0.5, images)
    notes = [record.getMessage() for record in caplog.records if str(tmp_path) in record.getMessage()]
    expected = []
    if name == 'DDIM':
        expected += ['use_clipped_model_output=True'] if clip else []
        expected += ['t - T // S'] if spacing != 'leading' else []
    elif (spacing, variance) == ('trailing', 'fixed_large'):
        expected = ['would add noise in the last']
    assert len(notes) == len(expected) and all(part in note for part, note in zip(expected, notes, strict=True))
    assert error < 1e-4 or notes, error


@pytest.mark.parametrize('schedule, mean_type', list(itertools.product(SCHEDULES, ['epsilon', 'xstart', 'v'])))
def test_every_schedule_and_parameterisation_goes_there_and_back(tmp_path, schedule, mean_type):
    if make_betas(schedule, 1e-3, 0.2, 40)[-1] == 1 and mean_type == 'epsilon':
        pytest.skip('the sampler refuses epsilon where alphas_bar reaches 0')
    config, _ = described(schedule=schedule, mean_type=mean_type)
    theirs = scheduler.arguments(vars(config))
    betas = make_betas(schedule, 1e-3, 0.2, 40)
    rtol = 1e-3 if schedule.endswith('zero_snr') else 1e-6  # diffusers rescales in float32
    assert torch.allclose(DDPMScheduler.from_config(theirs).betas.double(), betas, rtol=rtol, atol=0)
    path = tmp_path / 'scheduler_config.json'
    path.write_text(json.dumps(theirs))
    told, _ = scheduler.read(path)
    assert torch.allclose(make_betas(told['schedule'], told['beta_1'], told['beta_T'], told['T']), betas, rtol=1e-12)
    assert (told['mean_type'], told['var_type']) == (mean_type, 'fixedlarge')


@pytest.mark.parametrize('schedule', ['linear', 'quad', 'cosine'])
def test_schedules_are_rescaled_to_zero_snr_as_diffusers_rescales_them(schedule):
    betas = make_betas(f'{schedule}_zero_snr', 1e-4, 0.02, 1000)
    assert torch.allclose(betas, rescale_zero_terminal_snr(make_betas(schedule, 1e-4, 0.02, 1000)), atol=1e-12)
    assert betas[-1] == 1 and make_betas(f'{schedule}_zero_snr', 1e-4, 0.02, 1)[0] == 1


@pytest.mark.parametrize(
    'flip, options',
    [
        (True, {'attention_head_dim': None}),
        (False, {'attention_head_dim': None, 'freq_shift': 1, 'downsample_padding': 0, 'norm_eps': 1e-6}),
        (True, {}),  # 8 channels per head
    ],
)
def test_older_folders_of_diffusers_are_imported(tmp_path, flip, options):
    """google/ddpm-cifar10-32 is such a folder: no subfolders, .bin weights, the former names of attention."""
    blocks = {'down_block_types': ('DownBlock2D', 'AttnDownBlock2D'), 'up_block_types': ('AttnUpBlock2D', 'UpBlock2D')}
    options = {**blocks, **options, 'block_out_channels': (32, 64), 'layers_per_block': 1, 'sample_size': 8}
    torch.manual_seed(0)
    theirs = UNet2DModel(**options, flip_sin_to_cos=flip).eval()
    theirs.save_config(tmp_path)
    said = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(
        json.dumps({k: v for k, v in said.items() if k not in ('add_attention', 'dropout')})
    )
    DDPMScheduler(variance_type='fixed_large').save_config(tmp_path)
    former = {now: then for then, now in formats.FORMER.items()}
    weights = {
        re.sub(r'\.(to_q|to_k|to_v|to_out\.0)\.', lambda found: f'.{former[found[1]]}.', key): value
        for key, value in theirs.state_dict().items()
    }
    torch.save(weights, tmp_path / 'diffusion_pytorch_model.bin')
    told, converted = pipeline.read(tmp_path)
    assert (told['arch'], told['var_type'], told['clip_denoised'], told['img_size']) == (
        'official' if 'freq_shift' in options else 'pytorch_ddpm', 'fixedlarge', True, 8,
    )  # fmt: skip
    net = formats.network(told).eval()
    assert not net.load_state_dict(converted, strict=False).unexpected_keys
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 999])
    with torch.no_grad():
        assert largest_error(net(x, t), theirs(x, t).sample) < 1e-5


def test_exports_by_the_command(cli, tmp_path):
    run = tmp_path / 'run'
    cli(*TINY, '--cond', '--train', '--logdir', run)
    (run / 'eval.txt').write_text(json.dumps({
        'step': 4, 'n': 9, 'FID': 3.21, 'sample_steps': 0, 'eta': 1.0, 'var_type': 'fixedlarge', 'clip_denoised': False,
        'guidance': 1.0, 'reference': 'stats/digits.train.npz', 'feature_net': 'inception', 'protocol': 'pytorch',
    }) + '\n')  # fmt: skip
    (run / 'diffusers.tmp').mkdir()  # as a kill leaves it
    (run / 'diffusers.tmp' / 'half').touch()
    status, out, err = cli('--export=diffusers', '--logdir', run, '--license=mit')
    assert status == 0, err
    assert not (run / 'diffusers' / 'half').exists()
    card = (run / 'diffusers' / 'README.md').read_text()
    for part in ('license: "mit"', 'class-conditional', 'FID 3.21', 'pytorch', 'lr=0.0002', 'digits', 'class_labels=y'):
        assert part in card
    code = re.search('```python\n(.*?)```', card, re.S)[1]
    drawn = {'PATH': str(run / 'diffusers')}
    exec(code, drawn)
    for images in (drawn['ddpm'], drawn['ddim']):
        assert images.shape == (10, 1, 8, 8) and images.isfinite().all()

    few = '--order=3', '--eta=0', '--corrector', '--sample_steps=4', '--out', tmp_path / 'few'
    assert cli('--export=diffusers', '--logdir', run, *few)[0] == 0
    drawn = {'PATH': str(tmp_path / 'few')}
    exec(re.search('```python\n(.*?)```', (tmp_path / 'few' / 'README.md').read_text(), re.S)[1], drawn)
    assert drawn['unipcmultistep'].shape == (10, 1, 8, 8) and drawn['unipcmultistep'].isfinite().all()

    weights = checkpoint.load(run / 'ckpt.pt')['net_model']
    out = tmp_path / 'model.safetensors'
    assert cli('--export=safetensors', '--weights=net', '--logdir', run, '--out', out)[0] == 0
    assert cli('--import_ckpt', out, '--logdir', tmp_path / 'again')[0] == 0
    again = checkpoint.load(tmp_path / 'again' / 'ckpt.pt')
    assert all(torch.equal(again['ema_model'][key], value) for key, value in weights.items())
    assert (again['config']['cond'], again['config']['num_classes'], again['config']['T']) == (True, 10, 8)
    before = out.read_bytes()
    status, _, err = cli('--export=safetensors', '--logdir', run, '--out', out)
    assert status == 1 and 'is there already' in err and out.read_bytes() == before
    (tmp_path / 'empty').mkdir()
    status, _, err = cli('--export=safetensors', '--logdir', run, '--out', tmp_path / 'empty')
    assert status == 1 and 'empty is a folder: name the file in it' in err and (tmp_path / 'empty').is_dir()


@pytest.mark.parametrize(
    'flags, why',
    [
        (['--ch_mult=1', '--mean_type=xprev'], 'no --mean_type=xprev'),
        (['--ch_mult=2'], 'not --ch_mult=2 times'),
        (['--ch_mult=1,1', '--net=context_unet'], 'none of its networks'),
        (['--ch_mult=1', '--var_type=learned', '--loss=hybrid'], 'no --var_type=learned'),
        (['--ch_mult=1', '--eps_scale=1.02'], 'no --eps_scale=1.02: --eps_scale=1 draws so'),
        (['--ch_mult=1', '--order=2', '--eta=0.5'], 'have no --eta=0.5: --eta=0 or --order=1 draws so'),
        (['--ch_mult=1', '--prior=data'], r'starts from N\(0, I\)'),
    ],
)
def test_what_diffusers_cannot_represent_is_refused(cli, tmp_path, flags, why):
    tiny = [flag for flag in TINY if not flag.startswith('--ch_mult')]
    assert cli(*tiny, *flags, '--train', '--total_steps=1', '--logdir', tmp_path)[0] == 0
    before = sorted(os.listdir(tmp_path))
    status, _, err = cli('--export=diffusers', '--weights=net', '--logdir', tmp_path)
    assert status == 2 and re.search(f'cannot represent.*{why}', err) and len(err.splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == before


class Hostile:
    def __reduce__(self):
        return os.system, ('touch hacked',)


def spoil(path, kind):
    """Write a good state dict with a defect of this kind, and return what the error must say."""
    weights = state_dict('official_unet_a')
    if kind == 'hostile':
        path.write_bytes(pickle.dumps({'conv_in.weight': Hostile()}, protocol=2))
        return r'holds (posix|nt)\.system'
    if kind == 'missing':
        del weights['mid.attn_1.q.bias']
    if kind == 'telling':
        del weights['down.1.block.0.conv2.weight']
    if kind == 'surplus':
        weights['logvar'] = torch.zeros(3)
    if kind == 'shape':
        weights['conv_out.bias'] = torch.zeros(4)
    if kind == 'nan':
        weights['conv_out.bias'][1] = torch.nan
    if kind == 'other':
        weights = {'encoder.weight': torch.zeros(3)}
    torch.save([1, 2, 3] if kind == 'no dict' else weights, path)
    if kind == 'truncated':
        path.write_bytes(path.read_bytes()[:-100])
    return {
        'missing': r'mid\.attn_1\.q\.bias \(64,\) is missing',
        'telling': r'down\.1\.block\.0\.conv2\.weight is missing',
        'surplus': r'logvar \(3,\) is not of this network',
        'shape': r'conv_out\.bias is \(4,\), not \(3,\)',
        'nan': r'conv_out\.bias holds NaN or infinity: it draws nothing',
        'other': 'no network known here: its first keys are encoder.weight',
        'no dict': 'holds no state dict',
        'truncated': 'damaged or no checkpoint',
    }[kind]


@pytest.mark.parametrize(
    'kind', ['hostile', 'missing', 'telling', 'surplus', 'shape', 'nan', 'other', 'no dict', 'truncated']
)
def test_a_bad_file_is_one_line_and_leaves_nothing(cli, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    why = spoil(tmp_path / 'model.ckpt', kind)
    status, out, err = cli('--import_ckpt=model.ckpt', '--logdir=run', '--img_size=16')
    assert (status, out) == (1, '') and len(err.splitlines()) == 1 and re.search(f'model.ckpt.*{why}', err)
    assert os.listdir(tmp_path) == ['model.ckpt']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Return the folder of a run that draws by DDIM."""
    path = tmp_path_factory.mktemp('trained') / 'run'
    forked = Forked(*TINY, '--sample_steps=4', '--eta=0', '--train', '--logdir', path, log=f'{path}.log')
    assert forked.status() == 0, forked.error()
    return path


def test_a_sampler_of_a_run_a_file_and_a_folder(run, tmp_path, cli):
    config, net, _ = restored(run)
    pipeline.write(tmp_path / 'exported', replace(config, eta=0.0), net, 'card')
    torch.save(net.state_dict(), tmp_path / 'weights.pt')
    (tmp_path / 'killed').mkdir()  # between two checkpoints
    shutil.copy(run / 'ckpt.pt', tmp_path / 'killed' / 'ckpt.prev.pt')
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0, 7])
    with torch.no_grad():
        for source in (run, run / 'ckpt.pt', *(tmp_path / name for name in ('killed', 'exported', 'weights.pt'))):
            sampler = interop.from_pretrained(str(source))
            assert largest_error(sampler.model(x, t), net(x, t)) < 1e-5 and sampler.T == 8
            told = source != tmp_path / 'weights.pt'
            assert sampler.eta == (0 if told else 1) and sampler.alphas_bar[-1] < (0.1 if told else 1)
    assert interop.from_pretrained(str(run)).timesteps == [0, 2, 4, 6]
    assert interop.from_pretrained(str(run), steps=2, eta=1.0).timesteps == [0, 4]
    with pytest.raises(FileNotFoundError, match='nowhere: no such file or folder, nor one of cifar10'):
        interop.from_pretrained('nowhere')


def test_what_is_told_by_nobody_is_as_the_flags_are():
    assert vars(config_of()).items() >= {**interop.UNTOLD, 'dropout': config_of().dropout}.items()


def test_a_folder_and_wrapped_weights_are_sampled_and_bare_ones_sent_to_import_ckpt(run, tmp_path, cli):
    state = checkpoint.load(run / 'ckpt.pt')
    wrapped = {f'module.{key}': value for key, value in state['ema_model'].items()}
    torch.save({**state, 'ema_model': wrapped}, tmp_path / 'wrapped.pt')
    assert cli('--sample', '--ckpt', run, '--num_images=2', '--out', tmp_path / 'a')[0] == 0
    assert cli('--sample', '--ckpt', tmp_path / 'wrapped.pt', '--num_images=2', '--out', tmp_path / 'b')[0] == 0
    assert (tmp_path / 'a' / 'samples.npz').read_bytes() == (tmp_path / 'b' / 'samples.npz').read_bytes()
    torch.save(wrapped, tmp_path / 'bare.pt')
    (tmp_path / 'theirs').mkdir()
    (tmp_path / 'theirs' / 'model_index.json').touch()
    for name in ('bare.pt', 'theirs', 'model.safetensors'):
        status, _, err = cli('--sample', '--ckpt', tmp_path / name)
        assert status == 1 and f'--import_ckpt={tmp_path / name} --logdir=NEW' in err.splitlines()[-1], err


@pytest.mark.parametrize('key, value', [('T', None), ('ch', 'abc'), ('metrics', 5), ('eta', 'x'), ('ch_mult', {})])
def test_a_config_of_another_form_is_one_line(run, tmp_path, cli, key, value):
    state = checkpoint.load(run / 'ckpt.pt')
    torch.save({**state, 'config': {**state['config'], key: value}}, tmp_path / 'other.pt')
    status, _, err = cli('--import_ckpt', tmp_path / 'other.pt', '--logdir', tmp_path / 'run')
    assert status in (1, 2) and err.startswith('main.py: error: ') and len(err.splitlines()) == 1
    assert not (tmp_path / 'run').exists()


def test_contradicting_flags_and_missing_files_are_refused(cli, tmp_path):
    torch.save(state_dict('official_unet_a'), tmp_path / 'model.ckpt')
    status, _, err = cli('--import_ckpt', tmp_path / 'model.ckpt', '--logdir', tmp_path / 'run', '--ch=64')
    assert status == 2 and '--ch=64 (trained with 32)' in err
    status, _, err = cli('--import_ckpt=nowhere.ckpt', '--logdir', tmp_path / 'run')
    assert status == 1 and 'ema_cifar10' in err
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'part, key, value, why',
    [
        ('unet/config.json', 'attention_head_dim', 24, 'head_dim must divide the 64 channels .* not 24'),
        ('unet/config.json', 'norm_eps', 1e-6, 'norm_eps 1e-06 in place of 1e-05'),
        ('unet/config.json', 'down_block_types', ['DownBlock2D', 'ResnetDownsampleBlock2D'], 'ResnetDownsampleBlock2D'),
        ('scheduler/scheduler_config.json', 'beta_schedule', 'laplace', 'laplace'),
        ('scheduler/scheduler_config.json', 'trained_betas', [0.1, 0.3, 0.2], 'none of the schedules'),
    ],
)
def test_pipelines_of_other_kinds_are_refused(tmp_path, part, key, value, why):
    config, net = described()
    pipeline.write(tmp_path, config, net, 'card')
    said = json.loads((tmp_path / part).read_text())
    (tmp_path / part).write_text(json.dumps({**said, key: value}))
    with pytest.raises(CheckpointError, match=why):
        interop.read(str(tmp_path))
    (tmp_path / part).write_text('{')
    with pytest.raises(CheckpointError, match='cannot be read'):
        interop.read(str(tmp_path))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve one published model. Counts requests; `breaks_after` is the number of bytes sent of each answer."""
    torch.save(state_dict('official_unet_a'), tmp_path / 'published')
    content = (tmp_path / 'published').read_bytes()
    site = SimpleNamespace(content=content, requests=0, breaks_after=len(content))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            site.requests += 1
            self.send_response(200)
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            self.wfile.write(content[: site.breaks_after])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setattr(published, 'ADDRESS', f'http://127.0.0.1:{httpd.server_port}/{{place}}')
        model = interop.PUBLISHED['ema_cifar10']._replace(md5=hashlib.md5(content).hexdigest())
        monkeypatch.setitem(interop.PUBLISHED, 'ema_cifar10', model)
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
        yield site
        httpd.shutdown()


def cached_files(tmp_path):
    return [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()]


def test_published_models_are_fetched_once_and_a_broken_off_download_is_not_kept(server, tmp_path):
    """torch.hub cannot resume a download: nothing of it is kept, and the next call begins again."""
    server.breaks_after = 1000
    with pytest.raises(
        CheckpointError, match='model-790000.ckpt is not what .* if the download broke off, run it again'
    ):
        interop.from_pretrained('ema_cifar10')
    assert not cached_files(tmp_path)
    server.breaks_after = len(server.content)
    sampler = interop.from_pretrained('ema_cifar10', steps=5, eta=0.0)
    assert server.requests == 2 and [path.name for path in cached_files(tmp_path)] == ['model-790000.ckpt']
    arrays = golden('official_unet_a')
    assert largest_error(outputs(sampler.model, arrays), torch.from_numpy(arrays['y'])) < 1e-5
    assert sampler(torch.randn(1, 3, 16, 16)).isfinite().all() and sampler.clip_denoised and sampler.T == 1000
    interop.from_pretrained('ema_cifar10')
    assert server.requests == 2


def test_a_switched_off_bar_does_not_pass_for_a_broken_connection(server, monkeypatch):
    monkeypatch.setenv('TQDM_DISABLE', '1')
    assert interop.download('ema_cifar10').read_bytes() == server.content


def test_a_published_name_is_imported_and_another_file_in_its_place_is_not(server, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli('--import_ckpt=ema_cifar10', '--logdir=run')[0] == 0
    config, _, _ = restored('run')
    assert (config.arch, config.img_size, config.clip_denoised, config.dataset) == ('official', 32, True, 'cifar10')
    cached = next((tmp_path / 'cache').rglob('model-790000.ckpt'))
    cached.write_bytes(b'something else')
    status, _, err = cli('--import_ckpt=ema_cifar10', '--logdir=other')
    assert status == 1 and 'md5' in err and str(cached) in err and not os.path.exists('other')


def test_wrong_bytes_are_not_kept_and_offline_says_what_to_fetch(server, monkeypatch, tmp_path):
    wrong = interop.PUBLISHED['ema_cifar10']._replace(md5='0' * 32)
    monkeypatch.setitem(interop.PUBLISHED, 'ema_cifar10', wrong)
    with pytest.raises(CheckpointError, match='not what was published .* md5 0000'):
        interop.download('ema_cifar10')
    assert not cached_files(tmp_path)
    monkeypatch.setattr(published, 'ADDRESS', 'http://127.0.0.1:1/{place}')
    with pytest.raises(CheckpointError, match='put http://127.0.0.1:1/2e4f01e2d9ee49bab1d5 there') as raised:
        interop.download('ema_cifar10')
    assert 'model-790000.ckpt' in str(raised.value)
