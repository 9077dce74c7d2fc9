"""Import the schedulers of diffusers: common scheduler_config.json, and what a folder of diffusers draws here."""

import json
import re

import diffusers
import numpy as np
import pytest
import torch
from conftest import largest_error
from pipelines import described, share_noise, small_unet

import interop
from interop import pipeline
from interop.counterparts import SCHEDULERS

PIXELS = {'num_train_timesteps': 1000, 'beta_start': 0.0001, 'beta_end': 0.02, 'beta_schedule': 'linear'}
LATENTS = {**PIXELS, 'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear', 'trained_betas': None}
V = {'prediction_type': 'v_prediction'}
OFFSET = {'steps_offset': 1, 'set_alpha_to_one': False, 'clip_sample': False}
ANCESTRAL = {'eta': 1.0, 'order': 1, 'corrector': False}
DETERMINISTIC = {**ANCESTRAL, 'eta': 0.0}
# Name -> the class, what its scheduler_config.json says, and the flags and the notes that an import gives.
IMPORTED = {
    'google/ddpm-cifar10-32': (
        'DDPM',
        {**PIXELS, 'clip_sample': True, 'trained_betas': None, 'variance_type': 'fixed_large'},
        {**ANCESTRAL, 'var_type': 'fixedlarge', 'clip_denoised': True, 'schedule': 'linear', 'beta_T': 0.02},
        [],
    ),
    'google/ddpm-celebahq-256': (
        'DDPM',
        {**PIXELS, 'clip_sample': True, 'variance_type': 'fixed_small'},
        {**ANCESTRAL, 'var_type': 'fixedsmall', 'clip_denoised': True, 'spacing': 'leading'},
        [],
    ),
    'a cosine model': (
        'DDPM',
        {**PIXELS, 'beta_schedule': 'squaredcos_cap_v2', 'clip_sample': False, 'prediction_type': 'sample'},
        {**ANCESTRAL, 'schedule': 'cosine', 'mean_type': 'xstart', 'clip_denoised': False},
        [],
    ),
    'DDIM with trained betas': (
        'DDIM',
        {**PIXELS, 'trained_betas': np.linspace(1e-4, 0.02, 1000).tolist(), 'clip_sample': False},
        {**DETERMINISTIC, 'schedule': 'linear', 'beta_1': 1e-4, 'beta_T': 0.02, 'T': 1000},
        [],
    ),
    'DDIM of latents with v': (
        'DDIM',
        {**LATENTS, **OFFSET, **V, 'skip_prk_steps': True},
        {**DETERMINISTIC, 'schedule': 'quad', 'mean_type': 'v', 'clip_denoised': False},
        ['has set_alpha_to_one False in place of True: each image differs', r'--timesteps 1, 1 \+ r'],
    ),
    'DDIM with v and zero SNR': (
        'DDIM',
        {**LATENTS, **V, 'rescale_betas_zero_snr': True, 'timestep_spacing': 'trailing', 'clip_sample': False},
        {**DETERMINISTIC, 'schedule': 'quad_zero_snr', 'mean_type': 'v', 'spacing': 'trailing'},
        ['DDIMScheduler goes from t to t - T // S'],
    ),
    'PNDM of stable diffusion': (
        'PNDM',
        {**LATENTS, **OFFSET, 'skip_prk_steps': True},
        {**ANCESTRAL, 'schedule': 'quad', 'beta_1': 0.00085, 'beta_T': 0.012, 'clip_denoised': False},
        ['PNDMScheduler has no counterpart here: --order=1 --eta=1 is used in its place'],
    ),
    'Euler of SDXL': (
        'EulerDiscrete',
        {
            **LATENTS,
            **OFFSET,
            'timestep_spacing': 'leading',
            'interpolation_type': 'linear',
            'use_karras_sigmas': False,
        },
        {**DETERMINISTIC, 'spacing': 'leading'},
        [r'EulerDiscreteScheduler takes the --timesteps 1, 1 \+ r, ... 1 \+ \(S - 1\) r, where r = T // S'],
    ),
    'Euler with v': (
        'EulerDiscrete',
        {**LATENTS, **V},
        {**DETERMINISTIC, 'mean_type': 'v', 'spacing': 'linspace'},
        ['starts from noise of variance 1 - alphas_bar and rounds no timestep'],
    ),
    'Euler ancestral': (
        'EulerAncestralDiscrete',
        {**PIXELS, 'timestep_spacing': 'leading'},
        {**ANCESTRAL, 'spacing': 'leading'},
        [],
    ),
    'Heun': (
        'HeunDiscrete',
        {'clip_sample': True},
        {**ANCESTRAL, 'beta_T': 0.012, 'clip_denoised': True},
        ['Heun.* no '],
    ),
    'LMS of latents': (
        'LMSDiscrete',
        LATENTS,
        {**ANCESTRAL, 'schedule': 'quad'},
        ['LMSDiscreteScheduler has no counter'],
    ),
    'DEIS': ('DEISMultistep', PIXELS, ANCESTRAL, ['DEISMultistepScheduler has no counterpart']),
    'DPM++ 2S': ('DPMSolverSinglestep', PIXELS, ANCESTRAL, ['DPMSolverSinglestepScheduler has no counterpart']),
    'DPM++ 2M': (
        'DPMSolverMultistep',
        {**PIXELS, 'solver_order': 2, 'timestep_spacing': 'trailing', 'clip_sample': True},
        {**DETERMINISTIC, 'order': 2, 'clip_denoised': False, 'spacing': 'trailing'},
        [],
    ),
    'DPM++ 2M Karras': (
        'DPMSolverMultistep',
        {**LATENTS, 'use_karras_sigmas': True, 'steps_offset': 1, 'timestep_spacing': 'leading'},
        {**DETERMINISTIC, 'order': 2},
        ['use_karras_sigmas True in place of False: each image differs'],
    ),
    'DPM++ 2M of latents': (
        'DPMSolverMultistep',
        {**LATENTS, 'steps_offset': 1, 'timestep_spacing': 'leading'},
        {**DETERMINISTIC, 'order': 2},
        [r'leaves out t = 0 and takes the --timesteps 1 \+ r, ... 1 \+ S r, where r = T // \(S \+ 1\)'],
    ),
    'DPM++ SDE 2M of another class': (
        'DPMSolverMultistep',
        {**PIXELS, 'algorithm_type': 'sde-dpmsolver++', 'solver_type': 'bh2', 'timestep_spacing': 'trailing'},
        {**ANCESTRAL, 'order': 2},
        [],
    ),
    'DPM++ 3M': (
        'DPMSolverMultistep',
        {**PIXELS, 'solver_order': 3},
        ANCESTRAL,
        ['with algorithm_type dpmsolver.., solver_order 3, solver_type midpoint has no counterpart here'],
    ),
    'UniPC': (
        'UniPCMultistep',
        {**PIXELS, 'solver_type': 'midpoint'},
        {**DETERMINISTIC, 'order': 2, 'corrector': True, 'spacing': 'linspace'},
        [r'leaves out t = 0 and takes the --timesteps \(T - 1\) / S, 2 \(T - 1\) / S ... rounded'],
    ),
    'UniPC that begins uncorrected': (
        'UniPCMultistep',
        {**PIXELS, 'disable_corrector': [0], 'solver_order': 3, 'timestep_spacing': 'trailing'},
        {**DETERMINISTIC, 'order': 3, 'corrector': True},
        [r'UniPCMultistepScheduler has disable_corrector \[0\] in place of \[\]: each image differs slightly'],
    ),
}
REFUSED = {
    'DeepFloyd IF': (
        'DDPM',
        {**PIXELS, 'thresholding': True, 'sample_max_value': 1.5, 'variance_type': 'learned_range'},
        'thresholding with sample_max_value 1.5 in place of 1, to which our sampler clips x_0',
    ),
    'Shap-E': (
        'HeunDiscrete',
        {'beta_schedule': 'exp', 'prediction_type': 'sample', 'use_karras_sigmas': True},
        'beta_schedule must be one of linear, scaled_linear, squaredcos_cap_v2, sigmoid, not exp',
    ),
    'zero SNR with epsilon': (
        'DDIM',
        {**LATENTS, 'rescale_betas_zero_snr': True},
        'prediction_type epsilon gives no x_0 from the noise alone that rescale_betas_zero_snr ends in',
    ),
    'zero SNR of a schedule without': (
        'DDPM',
        {**LATENTS, **V, 'beta_schedule': 'sigmoid', 'rescale_betas_zero_snr': True},
        'schedule must be one of .*, not sigmoid_zero_snr',
    ),
    'clipping elsewhere': ('DDPM', {'clip_sample_range': 2.0}, 'clip_sample with clip_sample_range 2.0 in place of 1'),
    'a learned variance': ('DDPM', {'variance_type': 'learned'}, 'variance_type must be one of .*, not learned'),
    'betas of their own': ('DDPM', {'trained_betas': [0.1, 0.3, 0.2]}, 'trained_betas are of none of the schedules'),
    'no betas': ('DDPM', {'trained_betas': []}, 'trained_betas are of none of the schedules'),
    'flow matching': ('FlowMatchEulerDiscrete', {'shift': 3.0}, '_class_name must be one of DDPM, .*, not FlowMatch'),
    'flow by UniPC': ('UniPCMultistep', {'use_flow_sigmas': True}, 'use_flow_sigmas True in place of False'),
    'continuous time': ('EulerDiscrete', {**V, 'timestep_type': 'continuous'}, 'timestep_type continuous in place of'),
    'flow prediction': ('UniPCMultistep', {'prediction_type': 'flow_prediction'}, 'not flow_prediction'),
    'latent consistency': ('LCM', LATENTS, '_class_name must be one of .*, not LCM'),
}


def folder_of(path, name, said):
    """Write a pipeline whose scheduler_config.json says this."""
    config, net = described()
    pipeline.write(path, config, net, 'card')
    content = json.dumps({'_class_name': f'{name}Scheduler', '_diffusers_version': '0.30.0', **said})
    (path / 'scheduler' / 'scheduler_config.json').write_text(content)


@pytest.mark.parametrize('case', IMPORTED)
def test_common_configs_are_imported(tmp_path, caplog, case):
    name, said, flags, notes = IMPORTED[case]
    folder_of(tmp_path, name, said)
    told = interop.read(str(tmp_path)).config
    assert told.items() >= flags.items()
    lines = [record.getMessage() for record in caplog.records if str(tmp_path) in record.getMessage()]
    assert len(lines) == len(notes) and not any('\n' in line for line in lines), lines
    for line, note in zip(lines, notes, strict=True):
        assert re.search(note, line)
    sampler = interop.from_pretrained(str(tmp_path), steps=5)
    assert sampler(torch.randn(1, 3, 8, 8)).isfinite().all()
    # diffusers has the same betas, from its own defaults where the file is silent
    betas = getattr(diffusers, f'{name}Scheduler').from_config(said).betas.double()
    assert torch.allclose(sampler.alphas_bar.sqrt(), (1 - betas).cumprod(0).sqrt(), atol=1e-5)


@pytest.mark.parametrize('case', REFUSED)
def test_configs_without_a_counterpart_are_refused_with_the_reason(tmp_path, cli, case):
    name, said, why = REFUSED[case]
    folder_of(tmp_path / 'theirs', name, said)
    status, _, err = cli('--import_ckpt', tmp_path / 'theirs', '--logdir', tmp_path / 'run')
    assert status == 1 and len(err.splitlines()) == 1 and re.search(why, err), err
    assert not (tmp_path / 'run').exists()


def test_an_import_with_a_note_says_it_in_one_line_and_draws(tmp_path, cli):
    folder_of(tmp_path / 'theirs', 'PNDM', {**OFFSET, 'num_train_timesteps': 8})
    status, _, err = cli('--import_ckpt', tmp_path / 'theirs', '--logdir', tmp_path / 'run')
    assert status == 0 and [line for line in err.splitlines() if 'no counterpart' in line] == err.splitlines()[:1]
    assert cli('--sample', '--logdir', tmp_path / 'run', '--num_images=2', '--order=2', '--eta=0')[0] == 0


@pytest.mark.parametrize('name', SCHEDULERS)
def test_what_is_left_out_is_what_diffusers_assumes(name):
    try:
        theirs = getattr(diffusers, f'{name}Scheduler')().config
    except ImportError:
        pytest.skip(f'{name}Scheduler needs another package')
    ours = SCHEDULERS[name].settings
    assert {key: theirs[key] for key in ours if key in theirs} == {key: ours[key] for key in ours if key in theirs}


# --- what a folder draws


@pytest.fixture(scope='module')
def theirs():
    return small_unet()


def both(folder, monkeypatch, net, steps, S, follow=False):
    """Return what a scheduler draws, and what the folder that diffusers writes of it draws here, from the same noise.

    follow: whether the timesteps are given one by one.
    """
    diffusers.DDPMPipeline(net, steps).save_pretrained(folder)
    steps.set_timesteps(S)
    share_noise(monkeypatch)
    x = torch.randn(2, 1, 4, 4) * steps.init_noise_sigma
    for t in steps.timesteps:
        with torch.no_grad():
            out = net(steps.scale_model_input(x, t), t).sample
        options = {'use_clipped_model_output': True} if isinstance(steps, diffusers.DDIMScheduler) else {}
        x = steps.step(out, t, x, **options).prev_sample
    sampler = interop.from_pretrained(str(folder), steps=steps.timesteps.int().tolist() if follow else S)
    share_noise(monkeypatch)
    x_T = torch.randn(2, 1, 4, 4)
    *_, (_, x_0, _) = sampler.trajectory(x_T, noise=lambda x: torch.randn(x.shape))
    return x, x_0


TRAILING, LEADING = {'timestep_spacing': 'trailing'}, {'timestep_spacing': 'leading'}
TO_SIGMA_MIN = {'final_sigmas_type': 'sigma_min'}
ZERO_SNR = {'rescale_betas_zero_snr': True, **V}
EXACT = [
    ('DPMSolverMultistep', TRAILING),
    ('DPMSolverMultistep', {**TRAILING, 'solver_order': 1}),
    ('DPMSolverMultistep', {**TRAILING, **V, 'lower_order_final': False, 'euler_at_final': True}),
    ('DPMSolverMultistep', {**TRAILING, 'algorithm_type': 'sde-dpmsolver++'}),
    ('DPMSolverMultistep', {**TRAILING, 'thresholding': True}),
    *(
        ('UniPCMultistep', {**TRAILING, 'solver_order': order, 'disable_corrector': disabled})
        for order in (1, 2, 3)
        for disabled in ([], list(range(12)))
    ),
    ('UniPCMultistep', {**TRAILING, 'thresholding': True, 'prediction_type': 'sample'}),
    ('EulerDiscrete', LEADING),
    ('EulerDiscrete', {**LEADING, **V}),
    ('EulerAncestralDiscrete', LEADING),
    ('DDPM', {'thresholding': True, 'clip_sample': False}),
    ('DDPM', ZERO_SNR),
    ('DDIM', {**ZERO_SNR, **TRAILING, 'steps_offset': 1}),  # which trailing timesteps do not have
    ('DDIMParallel', {'clip_sample': False}),
    ('DDPMParallel', {'variance_type': 'fixed_large'}),
]


@pytest.mark.parametrize('S', [12, 6])
@pytest.mark.parametrize('name, said', EXACT, ids=str)
def test_a_folder_draws_what_diffusers_draws(tmp_path, monkeypatch, caplog, theirs, name, said, S):
    steps = getattr(diffusers, f'{name}Scheduler')(12, 5e-3, 0.6, **said)
    x, x_0 = both(tmp_path, monkeypatch, theirs, steps, S)
    assert largest_error(x_0, x) < 1e-4
    notes = [record.getMessage() for record in caplog.records if str(tmp_path) in record.getMessage()]
    assert all('DDIM' in note for note in notes)  # DDIM has notes of what may differ with other options


@pytest.mark.parametrize(
    'name, said, timesteps',
    [
        ('DDPM', {'steps_offset': 1}, [1, 3, 5, 7, 9]),  # 1 + i r, where r = 12 // 5
        ('DDIM', {'steps_offset': 1}, [1, 3, 5, 7, 9]),
        ('EulerDiscrete', {**LEADING, 'steps_offset': 1}, [1, 3, 5, 7, 9]),
        ('DPMSolverMultistep', {**LEADING, 'steps_offset': 1}, [3, 5, 7, 9, 11]),  # 1 + i r, where r = 12 // 6
        ('UniPCMultistep', LEADING, [2, 4, 6, 8, 10]),
        ('UniPCMultistep', {}, [2, 4, 7, 9, 11]),  # 11 i / 5, rounded
    ],
)
def test_the_timesteps_that_a_note_names_draw_what_diffusers_draws(
    tmp_path, monkeypatch, caplog, theirs, name, said, timesteps
):
    steps = getattr(diffusers, f'{name}Scheduler')(12, 5e-3, 0.6, **said)
    x, x_0 = both(tmp_path, monkeypatch, theirs, steps, 5, follow=True)
    assert steps.timesteps.tolist() == timesteps[::-1] and largest_error(x_0, x) < 1e-4
    assert '--timesteps' in caplog.text


@pytest.mark.parametrize(
    'name, said, why',
    [
        ('DDIM', {'set_alpha_to_one': False}, 'set_alpha_to_one'),
        ('DPMSolverMultistep', {**TRAILING, 'use_karras_sigmas': True}, 'use_karras_sigmas'),
        ('DPMSolverMultistep', {**TRAILING, **TO_SIGMA_MIN}, 'final_sigmas_type'),
        ('DPMSolverMultistep', {**TRAILING, **ZERO_SNR}, r'alphas_bar of 2\^-24'),
        (
            'UniPCMultistep',
            {**TRAILING, 'final_sigmas_type': 'sigma_min', 'lower_order_final': False},
            'lower_order_final',
        ),
        ('UniPCMultistep', {**TRAILING, 'disable_corrector': [0]}, 'disable_corrector'),
        ('EulerDiscrete', {}, 'variance 1 - alphas_bar'),
    ],
)
def test_what_differs_slightly_is_said(tmp_path, monkeypatch, caplog, theirs, name, said, why):
    steps = getattr(diffusers, f'{name}Scheduler')(12, 5e-3, 0.6, **said)
    x, x_0 = both(tmp_path, monkeypatch, theirs, steps, 6)
    assert 1e-4 < largest_error(x_0, x) < 1 and re.search(why, caplog.text)
