"""The Python of a model card, which draws with diffusers what --sample draws."""

from diffusion import learns_variance
from interop import scheduler

FROM_PIPELINES = """\
from diffusers import DDIMPipeline, DDPMPipeline
{ways}"""

# With labels or a learned variance, which the pipelines do not pass on or take for channels of the image.
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


def drawing_code(config):
    """Python that draws with an export of a config, a dict of flags, what --sample draws, and in few steps of DDIM.

    Its comments name the flags that draw the same, and why there is no such code.
    """
    in_parts = config['num_classes'] or learns_variance(config['var_type'])
    few = {'sample_steps': min(50, config['T']), 'eta': 0.0}
    ways = [_way(config, in_parts)]
    if scheduler.scheduler_name(config) == 'DDPM':
        ways.append(_way({**config, **few}, in_parts))
    if not in_parts:
        return FROM_PIPELINES.format(ways='\n'.join(ways))
    filled = {'labels': '', 'images': 4, 'with_labels': '', 'ways': '\n'.join(ways)}
    if n := config['num_classes']:
        y = f'y = torch.arange({n})  # one image of each label; {n} stands for no label\n'
        filled |= {'labels': y, 'images': 'len(y)', 'with_labels': ', class_labels=y'}
    return FROM_PARTS.format(**{**config, **filled})


def _way(config, in_parts):
    clip = '--clip_denoised' if config['clip_denoised'] else '--noclip_denoised'
    told = ' '.join(f'--{key}={config[key]}' for key in ('sample_steps', 'spacing', 'eta', 'var_type'))
    flags = f'--sample {told} {clip}' + ' --labels=all --guidance=1' * bool(config['num_classes'])
    if why := scheduler.misfit(config):
        return f'\n# {flags}: not with diffusers, for {why}'
    steps, name = config['sample_steps'] or config['T'], scheduler.scheduler_name(config)
    arguments = [str(steps)] if in_parts else ['batch_size=4', f'num_inference_steps={steps}']
    if name == 'DDIM':
        arguments += [f'eta={config["eta"]}', f'use_clipped_model_output={config["clip_denoised"]}']
    template = FROM_SCHEDULER if in_parts else FROM_PIPELINE
    return template.format(flags=flags, name=name, result=name.lower(), arguments=', '.join(arguments))
