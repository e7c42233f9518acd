"""What the documentation tells one to write works as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nocturnal_kedro import plugins, sources
from tests.conftest import PROJECT


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / page).read_text(), re.DOTALL)


def test_the_source_of_the_documentation_and_its_tests_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = next(block for block in blocks("extending.md") if 'TITLE = "Clinic' in block)
    tests = next(block for block in blocks("extending.md") if "find_parts([" in block)
    (tmp_path / "clinic.py").write_text(module)
    (tmp_path / "test_clinic.py").write_text(tests)
    start = (
        f"import sys, pytest; from nocturnal_kedro import sources; "
        f"sources.__path__.append({str(tmp_path)!r}); "
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {str(tmp_path)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", start], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d passed", done.stdout)


def run_with_documented(kind: str, name: str, marks: str, folder: Path, tests: list[str]) -> str:
    """Put the module that the page shows into a folder of its kind, and run tests with it there."""
    module = next(block for block in blocks("extending.md") if marks in block)
    (folder / f"{name}.py").write_text(module)
    start = (
        f"import sys, pytest; from nocturnal_kedro import {kind}; "
        f"{kind}.__path__.append({str(folder)!r}); "
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *{tests!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", start], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_model_of_the_documentation_holds_the_contract(tmp_path: Path) -> None:
    told = run_with_documented(
        "models", "gru", "class GRU", tmp_path, ["tests/models/test_contract.py", "-k", "gru"]
    )
    assert int(re.search(r"(\d+) passed", told)[1]) > 10


def test_the_baseline_of_the_documentation_works(tmp_path: Path) -> None:
    told = run_with_documented(
        "baselines", "reverting", "drawn back to the mean", tmp_path,
        ["tests/baselines/test_baselines.py", "-k", "reverting"],
    )  # fmt: skip
    assert re.search(r"[1-9]\d* passed", told)


def test_every_model_is_documented() -> None:
    page = (PROJECT / "docs" / "models.md").read_text()
    for name in plugins.names("model"):
        assert f"\n| `{name}` |" in page, name


def test_every_source_is_documented() -> None:
    page = (PROJECT / "docs" / "sources.md").read_text()
    folder = Path(str(sources.__file__)).parent
    for module in folder.glob("[a-z]*.py"):
        assert f"\n## `{module.stem}`" in page, module.stem
