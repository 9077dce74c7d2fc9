"""Writes the model card of an export: the README.md of its folder."""

import json
import math
import os
import re
from pathlib import Path

import score
from dataset import DATASETS
from interop.drawing_code import drawing_code
from run import build, hub, records
from run.config import recorded_keys
from run.restore import run_folder

CARD = """\
---
{metadata}
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


# How a score was measured: with which sampler, and with what.
COLUMNS = recorded_keys(), ('reference', 'feature_net', 'protocol', 'precision')


def model_card(config, net, step):
    """Returns the text of a model card: what the model is, how to load it, how it scored and how it was trained.

    config, net, step: as `restore` gives them.
    """
    folder = run_folder(config)
    path = Path(folder, 'flagfile.txt')
    flagfile = path.read_text('utf-8', 'replace') if path.exists() else ''
    title, scores = os.path.basename(os.path.abspath(folder)), records.read(folder)
    metadata = _metadata(config, title, [record for record in scores if record.get('step') == step])
    filled = {
        **vars(config),
        'title': title,
        'metadata': '\n'.join(f'{key}: {json.dumps(value)}' for key, value in metadata.items()),  # JSON is YAML too
        'parameters': sum(parameter.numel() for parameter in net.parameters()),
        'shape': 'x'.join(map(str, build.shape(config))),
        'weights': {'ema': 'averaged weights', 'net': 'last weights'}[config.weights],
        'step': f', after {step} training steps' if step else '',
        'code': drawing_code(vars(config)),
        'flags': flagfile.strip() if step else 'weights from elsewhere: not known',
        'scores': _scores_table(scores),
    }
    return CARD.format(**filled)


def _metadata(config, title, scores):
    """Returns what the Hub reads off a card, {key: value}. scores: the records of eval.txt of this step.

    Each way of measuring is one result of the model-index. What was measured again in the same way counts once.
    """
    task = 'class-conditional-image-generation' if config.num_classes else 'unconditional-image-generation'
    on_hub = config.dataset.startswith(hub.PREFIX)
    name = hub.parse(config.dataset).repo if on_hub else os.path.basename(os.path.abspath(config.dataset))
    identifier = name if on_hub else re.sub(r'[^\w.-]+', '-', name, flags=re.ASCII)  # the Hub takes no others
    shared = {'task': {'type': task}, 'dataset': {'type': identifier, 'name': name}}
    latest = {str(measured): record for record in scores if (measured := records.measured(record))}
    results = [
        {**shared, 'metrics': metrics}
        for record in latest.values()
        if record.get('weights') == config.weights and (metrics := _metrics(record))
    ]
    data = {'license': config.license, 'library_name': 'diffusers', 'tags': ['diffusers', 'ddpm', task]}
    if not config.num_classes:
        data['pipeline_tag'] = task  # the Hub has no task for images of a class
    if on_hub or config.dataset in DATASETS:
        data['datasets'] = [name]
    return {**data, **({'model-index': [{'name': title, 'results': results}]} if results else {})}


def _metrics(record):
    """Lists the main figures of a record, each with how it was measured, as a model-index has them."""
    how = {key: record[key] for column in COLUMNS for key in column if record.get(key) is not None}
    known = {key: value for key, value in record.items() if key.partition('(')[0] in score.main_figures()}
    return [
        {'type': key.partition('(')[0].lower(), 'name': key, 'value': value, 'args': {'n': record['n'], **how}}
        for key, value in known.items()
        if value is not None and math.isfinite(value)
    ]


def _scores_table(scores):
    """Makes a table of the scores in eval.txt, with whose they are and how each was measured."""
    if not scores:
        return 'None were measured.'
    lines = ['| after step | weights | images | scores | sampler | measured with |', '| --- ' * 6 + '|']
    figures = score.figure_names()
    for record in scores:
        known = {key: value for key, value in record.items() if key.startswith(figures) and value is not None}
        values = ', '.join(f'{key} {value:.4g}' for key, value in known.items())
        how = [', '.join(f'{key} {record[key]}' for key in column if key in record) for column in COLUMNS]
        of = [str(record.get(key, '')) for key in ('step', 'weights', 'n')]  # pytorch-ddpm writes the step alone
        lines.append(f'| {" | ".join([*of, values, *how])} |')
    return '\n'.join(lines)
