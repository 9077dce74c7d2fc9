"""Progress: a bar in a terminal, plain lines if stderr is not one, nothing if silenced."""

from types import SimpleNamespace

import pytest
from tqdm import tqdm

from run import progress


@pytest.fixture
def clock(monkeypatch):
    """Control the time that `progress` sees."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, 'time', SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_plain_lines_every_30_seconds_and_at_the_end(clock, capsys):
    with progress.bar(desc='drawing', total=100, unit='step') as bar:
        for _ in range(100):
            clock.now += 1
            bar.set_postfix(loss='0.5')
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        'drawing: 30/100 steps, 00:30 gone, 01:10 left, loss=0.5',
        'drawing: 60/100 steps, 01:00 gone, 00:40 left, loss=0.5',
        'drawing: 90/100 steps, 01:30 gone, 00:10 left, loss=0.5',
        'drawing: 100/100 steps, 01:40 gone, loss=0.5',
    ]


def test_a_line_when_asked_and_none_twice(clock, capsys):
    with progress.bar(total=4, initial=2, unit='step') as bar:
        bar.update()
        bar.refresh()
        bar.refresh()
    assert capsys.readouterr().err == '3/4 steps, 00:00 gone\n'


@pytest.mark.parametrize('seconds, lines', [(1, 0), (20, 2)])
def test_a_task_that_leaves_nothing_speaks_if_it_is_long(clock, capsys, seconds, lines):
    for _ in progress.bar(range(3), 'decoding', unit='image', leave=False):
        clock.now += seconds
    error = capsys.readouterr().err
    assert error.count('\n') == lines and error.endswith('decoding: 3/3 images, 01:00 gone\n') == bool(lines)


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setattr('sys.stderr.isatty', lambda: True)
    with progress.bar(range(3), total=3) as bar:
        assert isinstance(bar, tqdm) and not bar.disable


@pytest.mark.parametrize('terminal', [False, True])
@pytest.mark.parametrize('how', ['TQDM_DISABLE', 'silence'])
def test_silence(monkeypatch, capsys, terminal, how):
    monkeypatch.setattr(progress, '_silent', False)
    monkeypatch.setattr('sys.stderr.isatty', lambda: terminal)
    if how == 'TQDM_DISABLE':
        monkeypatch.setenv('TQDM_DISABLE', '1')
    if how == 'silence':
        progress.silence()
    assert list(progress.bar(range(3), 'drawing')) == [0, 1, 2]
    with progress.bar(total=3) as bar:
        bar.update()
        bar.set_postfix(loss='1')
        bar.refresh()
    assert capsys.readouterr().err == ''
