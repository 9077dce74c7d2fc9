"""Writes the Python code of a model card, which draws with diffusers what --sample draws.

Flags are a dict by name.
"""

from interop import scheduler
from process.solvers import learns_variance

FROM_PIPELINES = """\
from diffusers import DDIMPipeline, DDPMPipeline
{ways}"""

# The code for models with labels or a learned variance. Pipelines do not pass on labels, and they take the variance for
# channels of the image.
FROM_PARTS = """\
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained(PATH, subfolder='unet')
{labels}

def draw(scheduler, steps, **options):
    scheduler.set_timesteps(steps)
    x = torch.randn({images}, {channels}, {img_size}, {img_size})
    for t in scheduler.timesteps:
        with torch.no_grad():
            out = unet(x, t{with_labels}).sample
        if isinstance(scheduler, DDIMScheduler):
            out = out[:, :{channels}]  # what follows, if anything, is the variance
        x = scheduler.step(out, t, x, **options).prev_sample
    return (x / 2 + 0.5).clamp(0, 1)

{ways}"""

FROM_PIPELINE = """
# {flags}
pipeline = {name}Pipeline.from_pretrained(PATH)
pipeline({arguments}).images[0].save('{result}.png')"""

FROM_SCHEDULER = """
# {flags}
scheduler = {name}Scheduler.from_pretrained(PATH, subfolder='scheduler')
{result} = draw(scheduler, {arguments})"""


def drawing_code(flags):
    """Returns code that draws with the export of a model what --sample draws and, with DDIM, an image in few steps.

    A comment before each way to draw names the flags of --sample that draw the same, or says why diffusers cannot.
    """
    in_parts = flags['num_classes'] or learns_variance(flags['var_type'])
    few_steps = {'sample_steps': min(50, flags['T']), 'eta': 0.0}
    ways = [_way(flags, in_parts)]
    if scheduler.name_of(flags) == 'DDPM':
        ways.append(_way({**flags, **few_steps}, in_parts))
    if not in_parts:
        return FROM_PIPELINES.format(ways='\n'.join(ways))
    filled = {'labels': '', 'images': 4, 'with_labels': '', 'ways': '\n'.join(ways)}
    if n := flags['num_classes']:
        y = f'y = torch.arange({n})  # one image of each label; {n} stands for no label\n'
        filled |= {'labels': y, 'images': 'len(y)', 'with_labels': ', class_labels=y'}
    return FROM_PARTS.format(**{**flags, **filled})


def _way(flags, in_parts):
    """Returns the code of one way to draw. in_parts: whether it is for `FROM_PARTS`."""
    clip = '--clip_denoised' if flags['clip_denoised'] else '--noclip_denoised'
    values = ' '.join(f'--{key}={flags[key]}' for key in ('sample_steps', 'spacing', 'eta', 'var_type'))
    command = f'--sample {values} {clip}' + ' --labels=all --guidance=1' * bool(flags['num_classes'])
    if why := scheduler.misfit(flags):
        return f'\n# {command}: not with diffusers, for {why}'
    steps, name = flags['sample_steps'] or flags['T'], scheduler.name_of(flags)
    arguments = [str(steps)] if in_parts else ['batch_size=4', f'num_inference_steps={steps}']
    if name == 'DDIM':
        arguments += [f'eta={flags["eta"]}', f'use_clipped_model_output={flags["clip_denoised"]}']
    template = FROM_SCHEDULER if in_parts else FROM_PIPELINE
    return template.format(flags=command, name=name, result=name.lower(), arguments=', '.join(arguments))
