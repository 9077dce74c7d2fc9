"""Writes the model card of an export: the README.md of its folder."""

import os
from pathlib import Path

import score
from interop.drawing_code import drawing_code
from run import build, records
from run.config import recorded_keys
from run.restore import run_folder

CARD = """\
---
license: {license}
library_name: diffusers
tags: [diffusers, ddpm, {task}]
datasets: [{dataset}]
---

# {title}

A denoising diffusion probabilistic model (Ho et al. 2020, https://arxiv.org/abs/2006.11239) of {dataset}:
{shape} images, {parameters:,} parameters, {weights}{step}.

## How to load

```python
{code}
```

From the same noise it draws what `python main.py` draws with the flags in its comments.

## Scores

{scores}

## Trained with

```
{flags}
```
"""


def model_card(config, net, step):
    """Returns the text of a model card: what the model is, how to load it, how it scored and how it was trained.

    config, net, step: as `restore` gives them.
    """
    folder = run_folder(config)
    path = Path(folder, 'flagfile.txt')
    flagfile = path.read_text() if path.exists() else ''
    filled = {
        **vars(config),
        'title': os.path.basename(os.path.abspath(folder)),
        'task': 'class-conditional-image-generation' if config.num_classes else 'unconditional-image-generation',
        'parameters': sum(parameter.numel() for parameter in net.parameters()),
        'shape': 'x'.join(map(str, build.shape(config))),
        'weights': {'ema': 'averaged weights', 'net': 'last weights'}[config.weights],
        'step': f', after {step} training steps' if step else '',
        'code': drawing_code(vars(config)),
        'flags': flagfile.strip() if step else 'weights from elsewhere: not known',
        'scores': _scores_table(records.read(folder)),
    }
    return CARD.format(**filled)


def _scores_table(scores):
    """Makes a table of the scores that --eval wrote, with how each was measured. scores: the records of eval.txt."""
    if not scores:
        return 'None were measured.'
    lines = ['| after step | images | scores | sampler | measured with |', '| --- | --- | --- | --- | --- |']
    figures, columns = score.figure_names(), (recorded_keys(), ('reference', 'feature_net', 'protocol', 'precision'))
    for record in scores:
        known = {key: value for key, value in record.items() if key.startswith(figures) and value is not None}
        values = ', '.join(f'{key} {value:.4g}' for key, value in known.items())
        how = [', '.join(f'{key} {record[key]}' for key in column if key in record) for column in columns]
        lines.append(f'| {record["step"]} | {record["n"]} | {values} | {" | ".join(how)} |')
    return '\n'.join(lines)
