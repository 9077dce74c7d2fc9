"""Writes the Python code of a model card, which draws with diffusers what --sample draws.

Flags are a dict by name.
"""

from interop import scheduler
from interop.counterparts import MULTISTEPS, found
from model import sides
from process.solvers import learns_variance
from run.config import sampler_keys, words

FROM_PIPELINES = """\
from diffusers import DDIMPipeline, DDPMPipeline
{ways}"""

# The code for models with labels or a learned variance, and for schedulers that are told their timesteps. Pipelines do
# not pass on labels or timesteps, and they take the variance for channels of the image.
FROM_PARTS = """\
import torch
from diffusers import {names}

unet = UNet2DModel.from_pretrained(PATH, subfolder='unet')
{labels}{follow}

def draw(scheduler, **options):
    x = torch.randn({images}, {channels}, {height}, {width})
    for t in scheduler.timesteps:
        with torch.no_grad():
            out = unet(x, t{with_labels}).sample
        if not isinstance(scheduler, DDPMScheduler):
            out = out[:, :{channels}]  # what follows, if anything, is the variance
        x = scheduler.step(out, t, x, **options).prev_sample
    return (x / 2 + 0.5).clamp(0, 1)

{ways}"""

# The multistep schedulers have no way to be told timesteps, or place them otherwise than ours.
FOLLOW = """

def follow(scheduler, timesteps):
    scheduler.set_timesteps(len(timesteps))
    scheduler.timesteps = torch.tensor(timesteps)
    alphas_bar = (1 - scheduler.betas.double()).cumprod(0)[scheduler.timesteps]
    scheduler.sigmas = torch.cat([(1 / alphas_bar - 1).sqrt(), torch.zeros(1)]).float()
"""

FROM_PIPELINE = """
# {flags}
pipeline = {name}Pipeline.from_pretrained(PATH)
pipeline({arguments}).images[0].save('{result}.png')"""

FROM_SCHEDULER = """
# {flags}
scheduler = {name}Scheduler.from_pretrained(PATH, subfolder='scheduler')
{timesteps}
{result} = draw({arguments})"""

UNSAID = 'eps_scale', 'prior', 'noise'  # flags of a sampler that have one value in all that diffusers draws


def drawing_code(flags):
    """Returns code that draws with the export of a model what --sample draws and, with DDIM, an image in few steps.

    A comment before each way to draw names the flags of --sample that draw the same, or says why diffusers cannot.
    """
    name, told = found(flags)[0], bool(flags['timesteps'])
    in_parts = flags['num_classes'] or learns_variance(flags['var_type']) or told or name in MULTISTEPS
    few_steps = {'sample_steps': min(50, flags['T']), 'eta': 0.0}
    ways, names = [_way(flags, in_parts)], {'DDPMScheduler', 'UNet2DModel', f'{name}Scheduler'}
    if name == 'DDPM' and not told:
        ways.append(_way({**flags, **few_steps}, in_parts))
        names.add('DDIMScheduler')
    if not in_parts:
        return FROM_PIPELINES.format(ways='\n'.join(ways))
    filled = dict(zip(('height', 'width'), sides(flags['img_size']), strict=True))
    filled |= {'labels': '', 'images': 4, 'with_labels': '', 'ways': '\n'.join(ways), 'names': ', '.join(sorted(names))}
    filled['follow'] = FOLLOW if name in MULTISTEPS else ''
    if n := flags['num_classes']:
        y = f'y = torch.arange({n})  # one image of each label; {n} stands for no label\n'
        filled |= {'labels': y, 'images': 'len(y)', 'with_labels': ', class_labels=y'}
    return FROM_PARTS.format(**{**flags, **filled})


def _way(flags, in_parts):
    """Returns the code of one way to draw. in_parts: whether it is for `FROM_PARTS`."""
    said = [key for key in sampler_keys(flags['timesteps']) if key not in UNSAID]
    said += ['labels', 'guidance'] * bool(flags['num_classes'])
    values = {**flags, 'spacing': scheduler.spacing_of(flags), 'labels': 'all', 'guidance': 1}
    command = ' '.join(['--sample', *words(values, said)])
    if why := scheduler.misfit(flags):
        return f'\n# {command}: not with diffusers, for {why}'
    name, steps = found(flags)[0], flags['sample_steps'] or flags['T']
    arguments = ['scheduler'] if in_parts else ['batch_size=4', f'num_inference_steps={steps}']
    if name == 'DDIM':
        arguments += [f'eta={flags["eta"]}', f'use_clipped_model_output={flags["clip_denoised"]}']
    filled = {'flags': command, 'name': name, 'result': name.lower(), 'arguments': ', '.join(arguments)}
    return (FROM_SCHEDULER if in_parts else FROM_PIPELINE).format(**filled, timesteps=_timesteps(flags, name, steps))


def _timesteps(flags, name, steps):
    """Returns the line that sets the timesteps of a scheduler."""
    if name not in MULTISTEPS and not flags['timesteps']:
        return f'scheduler.set_timesteps({steps})'
    chain = scheduler.timesteps(flags)[::-1]
    evenly = range(chain[0], chain[-1] - 1, chain[1] - chain[0] if len(chain) > 1 else -1)
    listed = evenly if list(evenly) == chain else chain
    return ('follow(scheduler, {})' if name in MULTISTEPS else 'scheduler.set_timesteps(timesteps={})').format(listed)
