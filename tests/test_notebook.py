"""Run docs/start.ipynb as a reader does, but for fewer training steps."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip('nbformat', reason='needs requirements-test.txt')
nbclient = pytest.importorskip('nbclient', reason='needs requirements-test.txt')
DOCS = Path(__file__).parents[1] / 'docs'


def test_every_cell_runs():
    notebook = nbformat.read(DOCS / 'start.ipynb', as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    shown = [[output.output_type for output in cell.outputs] for cell in cells]
    (training,) = (cell for cell in cells if 'STEPS = 1000' in cell.source)
    training.source = training.source.replace('STEPS = 1000', 'STEPS = 3').replace('% 200 == 199', '% 1 == 0')
    client = nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(DOCS)}})
    client.execute()  # raises CellExecutionError
    assert ['stream' in outputs or 'display_data' in outputs for outputs in shown] == [True] * len(cells)
    assert training.outputs[0].text.startswith('step 1: loss ')
