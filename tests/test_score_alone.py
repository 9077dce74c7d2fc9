"""score/ stands alone: whoever has images can take it without the rest of this project."""

import ast

from conftest import ROOT


def imports_of(path):
    """The top-level names of what a module imports from outside of its own package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.partition('.')[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level < 2:
            yield node.module.partition('.')[0] if node.level == 0 else 'score'
        elif isinstance(node, ast.ImportFrom):
            yield f'{"." * node.level}{node.module or ""}'


def test_score_imports_nothing_of_ours():
    ours = {path.stem for path in ROOT.glob('*.py')} | {path.parent.name for path in ROOT.glob('*/*.py')}
    assert {'run', 'score', 'model', 'evaluate'} <= ours
    for path in (ROOT / 'score').rglob('*.py'):
        found = {name for name in imports_of(path) if name.startswith('.') or name in ours - {'score'}}
        assert not found, f'{path.name} imports {found}'
