"""The labels to draw, and their names."""

import torch

from dataset import shown
from run import hardware


def chosen(config):
    """Return the labels of --labels, a sequence of int; None for an unconditional network.

    The flag takes names of classes, and their numbers from 0 unless the name of a class is itself a number.

    Raises ValueError if the network does not have those labels.
    """
    if not config.num_classes:
        guides = config.guidance != 1 or config.guidance_interval
        if config.labels != 'all':
            raise ValueError('--labels needs a checkpoint trained with --cond')
        if guides and not config.guide_by:
            raise ValueError('--guidance and --guidance_interval need a checkpoint trained with --cond, or --guide_by')
        return None
    if config.labels == 'all':
        return range(config.num_classes)
    names = config.class_names or []
    numbers = {} if any(name.isdecimal() for name in names) else {str(y): y for y in range(config.num_classes)}
    known = numbers | {name: y for y, name in enumerate(names)}
    words = [config.labels] if config.labels in known else [word.strip() for word in config.labels.split(',')]
    if not known.keys() >= set(words):
        what = f'classes are {shown(names)}' if names else f'labels are 0 to {config.num_classes - 1}'
        raise ValueError(f'--labels={config.labels}: the {what}{", by name or number" if names and numbers else ""}')
    return [known[word] for word in words]


def names(config):
    """Return the names of the labels of the config's network: class names, and numbers for those without a name."""
    names = config.class_names or []
    return [*names, *map(str, range(len(names), config.num_classes))]


def count(config):
    """Return whether images depend on their labels: not if --guidance=0 leaves them out at every timestep."""
    return bool(config.num_classes and (config.guidance or config.guidance_interval or config.guide_by))


def of_indices(config, indices):
    """Return the label of each image, int64 [B]: the `chosen` ones in turn; None for an unconditional network."""
    turn = chosen(config)
    if turn is None:
        return None
    return torch.tensor([turn[i % len(turn)] for i in indices], device=hardware.device(config))
