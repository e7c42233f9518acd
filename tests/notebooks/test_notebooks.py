"""Every notebook runs from top to bottom on a finished run, and is kept without outputs."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from kedro.framework.context import KedroContext
from nbclient import NotebookClient

from tests.conftest import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def project_of(tmp_path: Path):
    """A copy of the project whose data folder is the one given."""

    def copied(data_root: Path) -> Path:
        for part in ("conf", "notebooks", "src"):
            shutil.copytree(PROJECT / part, tmp_path / part)
        shutil.copy(PROJECT / "pyproject.toml", tmp_path)
        (tmp_path / "data").symlink_to(data_root)
        return tmp_path

    return copied


def execute(notebook: Path, allow_errors: bool = False) -> nbformat.NotebookNode:
    client = NotebookClient(
        nbformat.read(notebook, as_version=4),
        timeout=120,
        kernel_name="python3",
        allow_errors=allow_errors,
        resources={"metadata": {"path": str(notebook.parent)}},
    )
    return client.execute()


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook: Path, finished: tuple[Path, KedroContext], project_of) -> None:
    done = execute(project_of(finished[0]) / "notebooks" / notebook.name)
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert shown.count("application/vnd.plotly.v1+json") >= 2
    assert "text/html" in shown  # the leaderboard


@pytest.mark.slow
def test_without_a_run_the_tour_says_what_to_do(project_of, tmp_path_factory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    done = execute(project_of(empty) / "notebooks" / "01_tour.ipynb", allow_errors=True)
    assert "Run `make run` in the project's folder first" in json.dumps(done.cells[2]["outputs"])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(notebook: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    assert [c for c in cells if c.get("outputs") or c.get("execution_count")] == []
