"""What the documentation tells one to write works as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nocturnal_kedro import sources
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


def test_every_source_is_documented() -> None:
    page = (PROJECT / "docs" / "sources.md").read_text()
    folder = Path(str(sources.__file__)).parent
    for module in folder.glob("[a-z]*.py"):
        assert f"\n## `{module.stem}`" in page, module.stem
