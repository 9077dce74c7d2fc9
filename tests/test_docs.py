"""Check that what the README and docs/ name exists: links, flags, flagfiles, functions, and the code they quote."""

import ast
import re
from pathlib import Path

import pytest

import main

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob('README*.md')), *sorted((ROOT / 'docs').glob('*.md'))]
OTHERS = {
    # of absl, torchrun, the page and python -m bench
    'flagfile', 'help', 'max-restarts', 'nnodes', 'nproc_per_node', 'rdzv_backend', 'rdzv_endpoint', 'logs',
    'json', 'reference', 'repeats',
}  # fmt: skip


def blocks(page):
    return re.findall(r'^```.*?^```$', page.read_text(encoding='utf-8'), re.S | re.M)


def references(page):
    """Return (file, name) for each `file.py:name` on a page."""
    return re.findall(r'`([\w/]+\.py):([A-Za-z_][\w.]*)`', page.read_text(encoding='utf-8'))


def names(body):
    """Return {name: the names within it} for what a module or class defines."""
    found = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = names(node.body)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = {}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id: {} for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def test_both_readmes_give_the_same_commands():
    assert blocks(ROOT / 'README.md') == blocks(ROOT / 'README.zh-CN.md')


def test_the_readme_is_short():
    assert 6000 <= len((ROOT / 'README.md').read_bytes()) <= 8192


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_flags_and_flagfiles_exist(page):
    text = page.read_text(encoding='utf-8')
    links = {link for link in re.findall(r'\]\(([^)#\s]+)', text) if '://' not in link}
    assert not [link for link in links if not (page.parent / link).exists()]
    ours = set(main.own_flags())
    flags = set(re.findall(r'(?<![\w-])--([a-zA-Z][\w-]*\w|T)\b', text))
    assert not {flag for flag in flags - OTHERS if flag not in ours and flag.removeprefix('no') not in ours}
    flagfiles = set(re.findall(r'config/\w+\.txt', text))
    assert not [path for path in flagfiles if not (ROOT / path).exists()]


@pytest.mark.parametrize('page', ['paper.md', 'extending.md'])
def test_what_is_named_in_the_code_exists(page):
    for path, name in references(ROOT / 'docs' / page):
        found = names(ast.parse((ROOT / path).read_text(encoding='utf-8')).body)
        for part in name.split('.'):
            assert part in found, f'{path}:{name}'
            found = found[part]


def test_the_code_of_the_paper_is_in_the_files_named_beside_it():
    text = (ROOT / 'docs' / 'paper.md').read_text(encoding='utf-8')
    stripped = {path: set() for path, _ in references(ROOT / 'docs' / 'paper.md')}
    for path, lines in stripped.items():
        lines.update(line.strip() for line in (ROOT / path).read_text(encoding='utf-8').splitlines())
    for before, code in re.findall(r'(.*?)```python\n(.*?)```', text, re.S):
        path = re.findall(r'`([\w/]+\.py):', before)[-1] if '.py:' in before else path
        assert set(code.splitlines()) <= stripped[path], f'{path}: {code}'
