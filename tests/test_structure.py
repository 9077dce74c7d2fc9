"""Check what each part may import, how long files and functions may be, and what a flag's role decides."""

import ast
from pathlib import Path

import pytest
from conftest import TINY
from runs import config_of, load

import main
from run import commandline, config

ROOT = Path(__file__).parent.parent
VERBS = {'train', 'sample', 'edit', 'evaluate', 'nll', 'figure'}
BELOW_RUN = {'process', 'dataset', 'networks', 'score', 'diffusion', 'model'}
# A folder or file at the root -> which others it may import. LEAVES, which nothing imports, may import all.
MAY_IMPORT = {
    'model': set(),
    'process': set(),
    'dataset': set(),
    'score': set(),
    'networks': {'model'},
    'diffusion': {'process'},
    'run': BELOW_RUN,
    'draw': BELOW_RUN | {'run'},
    'interop': BELOW_RUN | {'run', 'draw'},
    **dict.fromkeys(VERBS, BELOW_RUN | {'run', 'draw', 'interop'}),
    'main': BELOW_RUN | VERBS | {'run', 'draw', 'interop'},
    # demo.py's: it shows flags, draws figures and completes images as main.py does
    'page': BELOW_RUN | {'run', 'draw', 'edit', 'figure', 'main'},
}
LEAVES = {'demo', 'bench', 'tests'}


def modules():
    """Return {path relative to the root: its tree} for the code outside of tests/."""
    paths = [path for path in ROOT.rglob('*.py') if path.relative_to(ROOT).parts[0] in {*MAY_IMPORT, 'bench'}]
    paths += ROOT.glob('*.py')
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding='utf-8')) for path in paths}


def room(path):
    return path.parts[0].removesuffix('.py')


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split('.')[0]


def test_imports_run_one_way():
    for path, tree in modules().items():
        assert room(path) in {*MAY_IMPORT, *LEAVES}, f'{path}: say in MAY_IMPORT what it may import'
        if room(path) not in LEAVES:
            ours = {*MAY_IMPORT, *LEAVES} & set(imported(tree)) - {room(path)}
            assert ours <= MAY_IMPORT[room(path)], f'{path} imports {ours - MAY_IMPORT[room(path)]}'
    for above, below in MAY_IMPORT.items():
        assert not [name for name in below if above in MAY_IMPORT[name]], f'a circle through {above}'


def test_files_and_functions_are_short():
    for path, tree in modules().items():
        assert len((ROOT / path).read_text(encoding='utf-8').splitlines()) <= 400, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f'{path}: {node.name}'


@pytest.fixture
def declare():
    """Return a function that declares one more flag with a role, and returns its name."""
    flags, before = config.GROUPS[1].flags, list(config.GROUPS[1].flags)

    def add(role):
        flag = config.Flag(role, f'new_{role}', 'old', 'text', before='before')
        flags.append(flag)
        main.define(flag)
        return flag.name

    yield add
    for flag in flags[len(before) :]:
        delattr(main.FLAGS, flag.name)
    flags[:] = before


@pytest.mark.parametrize('role', config.ROLES)
def test_a_new_flag_is_found_everywhere_by_its_role(declare, tmp_path, cli, role):
    name = declare(role)
    run, argv = tmp_path / 'run', [f'--logdir={tmp_path / "run"}']
    assert f'--{name}=old' in commandline.help_text('', config.GROUPS, main.own_flags())
    assert cli(*TINY, '--train', f'--{name}=trained', *argv)[0] == 0
    assert load(run)['config'][name] == 'trained'
    assert (f'--{name}=trained\n' in (run / 'flagfile.txt').read_text()) == (role != 'action')
    stored = load(run)['config']
    fixed, suggested = role in ('network', 'process'), role in ('sampler', 'data', 'score', 'suggested')
    assert getattr(config.adopt(config_of(), stored, {}), name) == ('trained' if fixed or suggested else 'old')
    other = config_of(f'--{name}=other')
    if fixed:
        with pytest.raises(main.UsageError, match=f'--{name}=other .trained with trained'):
            config.adopt(other, stored, {name: ''})
    else:
        assert getattr(config.adopt(other, stored, {name: ''}), name) == 'other'
    del stored[name]  # as in a checkpoint older than the flag
    assert getattr(config.adopt(config_of(), stored, {}), name) == ('before' if fixed or suggested else 'old')
    assert (name in config.drawn_keys()) == (role in ('network', 'process', 'sampler', 'labels'))
    assert (name in config.recorded_keys()) == (role in ('sampler', 'labels'))


def test_the_flags_of_the_verb_that_is_asked_for_come_first():
    def headings(*argv):
        return [group.heading for group in commandline.sections(['main.py', *argv])]

    assert headings('--eval', '--help')[:2] == ['What to do', 'Sampler'] and 'Evaluation' in headings('--eval')[:5]
    assert headings('--train')[:3] == ['What to do', 'Network', 'Diffusion']
    assert sorted(headings()) == sorted(group.heading for group in config.GROUPS)


def test_the_page_of_flags_is_what_is_declared():
    page = commandline.flags_page(main.own_flags())
    assert (ROOT / 'docs' / 'flags.md').read_text(encoding='utf-8') == page, 'run make flags'


def test_the_package_holds_all_modules_and_each_requirements_file():
    tomllib = pytest.importorskip('tomllib', reason='needs Python 3.11')
    root = Path(main.__file__).parent
    project = tomllib.loads((root / 'pyproject.toml').read_text())['tool']['setuptools']
    assert set(project['py-modules']) == {path.stem for path in root.glob('*.py')}
    packages = {path.parent.name for path in root.glob('*/__init__.py')}
    assert set(project['packages']['find']['include']) == {f'{package}*' for package in packages}
    extras = {name: made['file'] for name, made in project['dynamic']['optional-dependencies'].items()}
    assert {f'requirements-{name}.txt' for name in extras} == {path.name for path in root.glob('requirements-*.txt')}
    assert all(f'requirements-{name}.txt' in files for name, files in extras.items())
    for path in root.glob('requirements*.txt'):  # setuptools reads no options such as -r
        assert not any(line.startswith('-') for line in path.read_text().splitlines())
