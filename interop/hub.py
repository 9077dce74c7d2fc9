"""Takes weights from the Hugging Face Hub and publishes exports there."""

import glob
import logging
from pathlib import Path

from interop import pipeline
from run import hub
from run.errors import UsageError

# The weights that `reading.read` takes of a folder, in the order in which it looks for them, and what goes with them.
WEIGHTS = (
    ['ckpt.pt'],
    *([f'unet/{pipeline.WEIGHTS}.{end}', f'{pipeline.WEIGHTS}.{end}'] for end in ('safetensors', 'bin')),
)
BESIDE = ['unet/config.json', 'config.json', 'scheduler/scheduler_config.json', 'scheduler_config.json']


def fetch(text):
    """Returns the path of the file or folder at an address on the Hub, which it downloads if the cache lacks it.

    Only the weights that `reading.read` takes are downloaded, not the same in other formats. Each file is checked
    against the digest that the Hub gave it, whenever it is used.

    Raises UsageError for an address that is none; HubError if the package is missing, or if the files cannot be had or
    are not what the Hub holds.
    """
    repo, _, path = address = hub.parse(text)
    for weights in WEIGHTS:
        wanted = [path] * bool(path) + [f'{path}/{name}'.lstrip('/') for name in (*weights, *BESIDE)]
        folder = hub.snapshot(text, address, [glob.escape(name) for name in wanted])
        place = Path(folder, path)
        if place.is_file() or any((place / name).is_file() for name in weights):
            break
    else:
        raise hub.HubError(f'{text} holds none of {", ".join(sum(WEIGHTS, []))}: name a file in it')
    logging.info('%s: %s of commit %s', text, repo, Path(folder).name)
    for name in wanted:
        hub.check_digest(Path(folder, name))
    return str(place)


def check_push(config):
    """Raises UsageError or HubError if --push cannot work, before anything is made."""
    address = hub.parse(config.push)
    if config.export != 'diffusers':
        raise UsageError('--push is for --export=diffusers, whose card describes the model')
    if address.path:
        raise UsageError(f'--push={config.push}: the Hub reads a card at the top alone; leave out /{address.path}')
    package = hub.package()
    if package.constants.HF_HUB_OFFLINE:
        raise UsageError('--push with HF_HUB_OFFLINE set: unset it')
    if not package.get_token():
        raise hub.HubError(f'--push={config.push} needs a token of the Hub: run hf auth login, or set HF_TOKEN')


def push(folder, text, message):
    """Commits the files of a folder to the repository of an address, which it creates if there is none.

    Files there that the folder does not have stay. Raises HubError if the Hub refuses or cannot be reached.
    """
    address = hub.parse(text)
    with hub.explained(text, address):
        api = hub.package().HfApi()
        api.create_repo(address.repo, exist_ok=True)
        commit = api.upload_folder(
            repo_id=address.repo, revision=address.revision, folder_path=folder, commit_message=message
        )
    logging.info('%s: %s', text, commit.commit_url)
