"""The JSON files within a folder of diffusers."""

import json
from pathlib import Path

from run.checkpoint import CheckpointError

VERSION = '0.30.0'  # of diffusers, whose arguments these are


def read_json(path):
    try:
        value = json.loads(Path(path).read_text())
        if not isinstance(value, dict):
            raise ValueError('not an object')
    except FileNotFoundError as error:
        raise CheckpointError(f'{path} is missing: a diffusers pipeline has it') from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{path} cannot be read: {error}') from error
    return value


def differences(ours, theirs):
    return [f'{key} {theirs[key]} in place of {ours[key]}' for key in ours if theirs.get(key, ours[key]) != ours[key]]
