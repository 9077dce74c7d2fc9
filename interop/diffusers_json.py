"""Reads the JSON files in a folder of diffusers, and compares their values with ours."""

import json
from pathlib import Path

from run.checkpoint import CheckpointError

VERSION = '0.30.0'  # the version of diffusers whose arguments these are


def read_json(path):
    """Reads the JSON object in a file, as a dict. Raises CheckpointError if there is none."""
    try:
        value = json.loads(Path(path).read_text(encoding='utf-8'))
        if not isinstance(value, dict):
            raise ValueError('not an object')
    except FileNotFoundError as error:
        raise CheckpointError(f'{path} is missing: a diffusers pipeline has it') from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{path} cannot be read: {error}') from error
    return value


def differences(ours, theirs):
    """Lists, in words, the values that differ between two dicts. A key that `theirs` lacks does not count."""
    return [f'{key} {theirs[key]} in place of {ours[key]}' for key in ours if theirs.get(key, ours[key]) != ours[key]]
