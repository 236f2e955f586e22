"""Every notebook runs from top to bottom, and is kept with what it shows."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures(notebook):
    return [output for output in outputs(notebook) if "image/png" in output.get("data", {})]


@each
def test_notebook_is_kept_as_it_ran_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert len(pictures(notebook)) >= 2
    for output in outputs(notebook):
        assert output.output_type in ("stream", "execute_result", "display_data")
        assert output.get("name") != "stderr"
    text = path.read_text()
    assert "sys.path" not in text and "/tmp/" not in text and " at 0x" not in text
    assert len(text) < 600_000


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the kernel's own libraries, not ours
@each
def test_notebook_runs_anywhere(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    kept = len(pictures(notebook))
    where = {"metadata": {"path": str(tmp_path)}}  # none needs a file of the repository
    client = nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where)
    client.execute()
    assert len(pictures(notebook)) == kept
