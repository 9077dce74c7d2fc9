"""Exchange weights with a stand-in for the Hugging Face Hub, by way of huggingface_hub itself."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import hub_server
import pytest
from conftest import TINY
from hub_server import PIECE, TOKEN, Hub, files_of
from runs import Forked, differences, load, one_line

from run import hub
from run.errors import UsageError

SCORES = {
    'weights': 'ema', 'n': 9, 'FID': 3.21, 'KID': 0.5, 'KID_std': 0.1, 'IS': None, 'Recall_k3': float('nan'),
    'sample_steps': 0, 'eta': 1.0, 'reference': 'stats/digits.train.npz', 'feature_net': 'inception',
}  # fmt: skip


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Train a run, and export it to its folder diffusers/."""
    folder = tmp_path_factory.mktemp('trained') / 'run'
    log = folder.parent / 'log'
    argv = [*TINY, '--train', '--export=diffusers', '--arch=official', '--logdir', folder]
    assert Forked(*argv, log=log).status() == 0, log.read_text()
    return folder


@pytest.fixture
def server(run):
    server = Hub()
    exported = files_of(run / 'diffusers')
    copy = {'unet/diffusion_pytorch_model.bin': b'the same again', 'unet/diffusion_pytorch_model.fp16.safetensors': b''}
    folder = {f'runs/a/{name}': (run / name).read_bytes() for name in ('ckpt.pt', 'flagfile.txt')}
    server.repos['me/digits'] = {'main': {**exported, **copy}, 'v1': folder, 'refs/pr/3': {'README.md': b'---\n---\n'}}
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def main_py(server, tmp_path):
    """Run main.py with the server as its Hub -> (exit status, stderr)."""
    return partial(hub_server.main_py, server, tmp_path / 'cache', tmp_path / 'log')


def downloaded(server):
    return [
        path.partition('/resolve/')[2][41:] for method, path, _ in server.asked if method == 'GET' and 'resolve' in path
    ]


def test_a_pipeline_a_run_and_a_file_are_imported_and_then_need_no_connection(server, main_py, run, tmp_path):
    weights = load(run)['ema_model']
    for i, address in enumerate(('hf:me/digits', 'hf:me/digits@v1/runs/a', 'hf://me/digits@v1/runs/a/ckpt.pt')):
        status, error = main_py(f'--import_ckpt={address}', f'--logdir={tmp_path / str(i)}')
        assert status == 0, error
        assert f'{address}: me/digits of commit ' in error
        assert differences(weights, load(tmp_path / str(i))['ema_model']) == []
    assert load(tmp_path / '0')['config']['import_ckpt'] == 'hf:me/digits'
    assert sorted(downloaded(server)) == [
        'runs/a/ckpt.pt', 'scheduler/scheduler_config.json', 'unet/config.json',
        'unet/diffusion_pytorch_model.safetensors',
    ]  # fmt: skip
    server.asked.clear()
    offline = [f'--import_ckpt={"hf:me/digits"}', f'--logdir={tmp_path / "offline"}']
    assert main_py(*offline, HF_HUB_OFFLINE='1')[0] == 0 and not server.asked
    assert differences(weights, load(tmp_path / 'offline')['ema_model']) == []
    shutil.rmtree(tmp_path / 'cache')
    shutil.rmtree(tmp_path / 'offline')
    status, error = main_py(*offline, HF_HUB_OFFLINE='1')
    assert status == 1 and 'hf:me/digits: it is not in the cache' in one_line(error)
    assert not (tmp_path / 'offline').exists()


def test_a_download_that_breaks_off_goes_on(server, main_py, tmp_path):
    name = 'unet/diffusion_pytorch_model.safetensors'
    server.cut.add(name)
    argv = '--import_ckpt=hf:me/digits', f'--logdir={tmp_path / "run"}'
    assert any(main_py(*argv)[0] == 0 for _ in range(2))  # older versions go on when they are called again
    asked = [begin for method, path, begin in server.asked if method == 'GET' and path.endswith(name)]
    half = len(server.repos['me/digits']['main'][name]) // 2
    assert asked == [None, f'bytes={half // PIECE * PIECE}-']


@pytest.mark.parametrize('name', ['unet/diffusion_pytorch_model.safetensors', 'unet/config.json'])
def test_other_bytes_than_the_hub_holds_are_refused(server, main_py, tmp_path, name):
    server.spoilt.add(name)
    argv = ['--import_ckpt=hf:me/digits', f'--logdir={tmp_path / "run"}']
    for _ in range(2):  # the cache is checked again
        status, error = main_py(*argv)
        assert status == 1 and f'{name} is not what the Hub holds' in one_line(error)
        assert not (tmp_path / 'run').exists()
    server.spoilt.clear()
    Path(one_line(error).rpartition('delete ')[2]).unlink()
    assert main_py(*argv)[0] == 0


def test_what_is_not_there_or_not_open_is_one_line(server, main_py, tmp_path):
    server.private.add('me/digits')
    argv = f'--logdir={tmp_path / "run"}', '--import_ckpt=hf:me/digits'
    closed = 'me/digits is not there or not open to you: see its name, run hf auth login or set HF_TOKEN'
    status, error = main_py(*argv)
    assert status == 1 and closed in one_line(error)
    assert main_py(*argv, HF_TOKEN=TOKEN)[0] == 0
    server.private.clear()
    for address, reason in (
        ('hf:me/none', 'me/none is not there'),
        ('hf:me/digits@v2', 'me/digits has no revision v2'),
        ('hf:me/digits@refs/pr/3', 'holds none of ckpt.pt, unet/diffusion'),
    ):
        status, error = main_py(f'--import_ckpt={address}', f'--logdir={tmp_path / "other"}')
        assert status == 1 and address in one_line(error) and reason in one_line(error)
    assert not (tmp_path / 'other').exists()


def test_a_push_commits_the_export_with_its_card(server, main_py, run, tmp_path):
    from huggingface_hub import ModelCard

    here = tmp_path / 'run-é'
    shutil.copytree(run, here, ignore=shutil.ignore_patterns('diffusers'))
    records = [{**SCORES, 'step': 4, 'FID': 9.9}, {**SCORES, 'step': 4}, {**SCORES, 'step': 2, 'FID': 5.0}]
    records.append({**SCORES, 'step': 4, 'FID': 4.0, 'sample_steps': 20})
    records.append(
        {'step': 4, 'FID': 3.9, 'IS': 9.4, 'FID_EMA': 3.2}
    )  # of pytorch-ddpm, whose FID is of the last weights
    (here / 'eval.txt').write_text('\n'.join(json.dumps(record) for record in records))
    with open(here / 'flagfile.txt', 'ab') as file:
        file.write('# é\n'.encode('latin1'))
    argv = '--export=diffusers', f'--logdir={here}', '--push=me/new', '--license=mit'
    status, error = main_py(*argv)
    assert status == 1 and '--push=me/new needs a token of the Hub: run hf auth login' in one_line(error)
    status, error = main_py(*argv, HF_TOKEN='hf_of_another')
    assert status == 1 and 'me/new is not there or not open to you' in one_line(error)
    assert not (here / 'diffusers').exists() and 'me/new' not in server.repos
    status, error = main_py(*argv, HF_TOKEN=TOKEN)
    assert status == 0 and '/me/new/commit/' in error, error
    assert server.repos['me/new']['main'] == files_of(here / 'diffusers')
    card = ModelCard.load(here / 'diffusers' / 'README.md').data
    assert (card.license, card.library_name, card.datasets) == ('mit', 'diffusers', ['digits'])
    assert card.pipeline_tag == 'unconditional-image-generation' in card.tags and card.model_name == here.name
    scores = [(each.metric_name, each.metric_value, each.metric_args['sample_steps']) for each in card.eval_results]
    assert sorted(scores) == [('FID', 3.21, 0), ('FID', 4.0, 20), ('KID', 0.5, 0), ('KID', 0.5, 20)]
    assert {(each.dataset_type, each.metric_args['n'], each.task_type) for each in card.eval_results} == {
        ('digits', 9, 'unconditional-image-generation')
    }
    again = *argv, f'--out={tmp_path / "again"}'
    status, error = main_py(*again[:2], '--push=me/new@v2', again[-1], HF_TOKEN=TOKEN)
    assert status == 1 and 'me/new has no revision v2' in one_line(error) and not (tmp_path / 'again').exists()


@pytest.mark.parametrize(
    'flags, status, message',
    [
        (['--push=me/new'], 2, '--push is for --export=diffusers'),
        (['--push=me/new', '--export=safetensors'], 2, '--push is for --export=diffusers'),
        (['--push=new', '--export=diffusers'], 2, 'new is no address on the Hub: write OWNER/NAME'),
        (['--push=me/new/folder', '--export=diffusers'], 2, 'leave out /folder'),
        (['--push=me/new', '--export=diffusers'], 2, '--push with HF_HUB_OFFLINE set'),
        (['--import_ckpt=hf:digits'], 2, 'hf:digits is no address on the Hub'),
        (['--import_ckpt=hf:me/digits/../other'], 2, 'is no address on the Hub'),
        (['--import_ckpt=me/digits'], 1, 'from the Hub: hf:me/digits'),
        (['--import_ckpt=digits.pt'], 1, 'from the Hub: hf:OWNER/NAME'),
    ],
)
def test_wrong_addresses_and_flags_are_one_line(cli, tmp_path, monkeypatch, flags, status, message):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    found, _, error = cli(*TINY, *flags, '--train', f'--logdir={tmp_path / "run"}')
    assert found == status and message in one_line(error) and not (tmp_path / 'run').exists()


@pytest.mark.parametrize('flags', [['--import_ckpt=hf:me/digits'], ['--train', '--export=diffusers', '--push=me/new']])
def test_without_the_package_the_line_names_the_requirements(cli, tmp_path, monkeypatch, flags):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    status, _, error = cli(*TINY, *flags, f'--logdir={tmp_path / "run"}')
    assert status == 1 and 'pip install -r requirements-hub.txt' in one_line(error)
    assert not (tmp_path / 'run').exists()


def test_addresses():
    for text, address in (
        ('hf:google/ddpm-cifar10-32', ('google/ddpm-cifar10-32', None, '')),
        ('hf://a/b@v1/', ('a/b', 'v1', '')),
        ('hf://datasets/a/b@v1', ('a/b', 'v1', '')),
        ('a/b@refs/pr/3/x/y.pt', ('a/b', 'refs/pr/3', 'x/y.pt')),
        ('hf:a/b/unet', ('a/b', None, 'unet')),
        ('hf:a/b@refs/convert/parquet/all/train', ('a/b', 'refs/convert/parquet', 'all/train')),
    ):
        assert hub.parse(text) == address
    for text in ('hf:', 'hf:a', 'hf:a/b@', 'hf:a/b@/x', 'hf:/a/b', 'hf:a/b//', 'hf:../b', 'hf:a/b/./c', 'hf:a/b/..'):
        with pytest.raises(UsageError, match='is no address on the Hub'):
            hub.parse(text)
