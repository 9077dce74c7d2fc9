# ruff: noqa: E402
import os

# One thread, here and in the processes that tests start: networks this small gain nothing from more.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import gc
import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from runs import config_of

import dataset
import main
import score
from dataset import loader
from model import UNet
from run import inputs

# torch's modules are a million objects. To look through them for cycles as often as Python does takes 5% of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 20)

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / 'golden'
# A network small enough to train for a few steps in a test, on the digits that come with scikit-learn.
TINY = shlex.split(
    '--dataset=digits --img_size=8 --ch=32 --ch_mult=1 --attn= --num_res_blocks=1 --dropout=0 --T=8 --beta_T=0.5 '
    '--batch_size=8 --warmup=2 --total_steps=4 --sample_step=0 --save_step=0 --log_step=1 --sample_size=4 '
    '--num_images=4 --device=cpu --precision=fp32 --compile=off'
)


@pytest.fixture
def cli(capsys):
    """Run main.py in this process: cli('--train', ...) -> (exit status, stdout, stderr)."""

    def run(*argv):
        with flagsaver.flagsaver():
            for name in list(flags.FLAGS):
                flags.FLAGS[name].present = 0
            handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
            try:
                status = main.main(main.parse_flags(['main.py', *map(str, argv)]))
            except SystemExit as error:
                status = error.code
            finally:  # else a run that has ended would take a signal to pytest
                for signum, handler in handlers.items():
                    signal.signal(signum, handler)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def spawn(*argv, **kwargs):
    """Start main.py in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / 'main.py'), *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def golden(name):
    return np.load(GOLDEN / f'{name}.npz', allow_pickle=False)


@pytest.fixture(scope='session')
def reference():
    """Return pytorch-ddpm's outputs under known weights, as tensors."""
    arrays = golden('pytorch_ddpm_unet_a')
    return {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != 'config'}


@pytest.fixture(scope='session')
def reference_net(reference):
    """Return our network with pytorch-ddpm's weights, in eval mode."""
    net = UNet(**json.loads(str(golden('pytorch_ddpm_unet_a')['config'])))
    net.load_state_dict({key[3:]: value for key, value in reference.items() if key.startswith('sd/')})
    return net.eval()


def largest_error(value, expected):
    """Return the largest difference, relative to the largest expected value."""
    return ((value - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture
def folder_of_images(tmp_path):
    """Make 12 RGB images of mixed sizes in two class folders, one of them nested."""
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / 'images' / ('cat' if i < 5 else 'dog/deeper') / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (10 + i, 14, 3), dtype=np.uint8)).save(path)
    return tmp_path / 'images'


@pytest.fixture(scope='session')
def classifier(tmp_path_factory):
    """Train the classifier of the digits, once for the tests in all processes."""
    folder = tmp_path_factory.getbasetemp()
    path = (folder.parent if 'PYTEST_XDIST_WORKER' in os.environ else folder) / 'digits.classifier.pt'
    with filelock.FileLock(f'{path}.lock'):
        score.FEATURE_NETS['classifier'](path, data=lambda: inputs.labelled(config_of(*TINY)))
    return path


@pytest.fixture(scope='session')
def digits(classifier):
    """Return the digits in random order, uint8, and the function that gives the classifier's features of them."""
    images = torch.cat([loader.decode_all(dataset.load('digits', '', 8, split))[0] for split in ('train', 'test')])
    net = score.FEATURE_NETS['classifier'](classifier)
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))], lambda x: net(x)[0]


@pytest.fixture
def here(tmp_path, monkeypatch, classifier):
    """Enter a new working folder with the digits' classifier in its stats/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'stats').mkdir()
    shutil.copy(classifier, 'stats')
    return tmp_path
