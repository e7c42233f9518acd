"""What the documentation names is there, and what there is, it names."""

import re
from pathlib import Path
from typing import Any

import pytest
from kedro.framework.cli.utils import _split_params
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession

from nocturnal_kedro import plugins, sources
from nocturnal_kedro.pipeline_registry import EXPERIMENTS
from tests.conftest import PROJECT

# docs/extending.md is left out: tests/test_extending.py runs what it shows.
PAGES = {
    page.name: page.read_text()
    for page in (PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md")))
    if page.name != "extending.md"
}
COMMANDS = sorted(
    {
        (page, command.split(" #")[0].strip())
        for page, text in PAGES.items()
        for command in re.findall(r"kedro run --[^`\n]*", text)
    }
)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_names_what_there_is(page: str, command: str, project: None) -> None:
    given: dict[str, Any] = {}
    for text in re.findall(r'--params="([^"]+)"', command):
        given |= _split_params(None, None, text) if "..." not in text else {}
    env = re.search(r"--env=(\w+)", command)
    with KedroSession.create(
        project_path=PROJECT, env=env and env[1], runtime_params=given
    ) as session:
        session.load_context()  # which knows every parameter, and refuses others
        named = re.search(r"--pipelines=(\S+)", command)
        assert set(named[1].split(",") if named else ()) - {"STAGE"} <= set(pipelines)


def test_every_entry_of_the_catalog_is_documented(project: None) -> None:
    with KedroSession.create(project_path=PROJECT) as session:
        entries = session.load_context().config_loader["catalog"]
    rows = [line.split("|")[1] for line in PAGES["datasets.md"].splitlines() if line[:2] == "| "]
    documented = set()
    for row in rows:
        first, *others = re.findall(r"`([^`]+)`", row) or [""]
        documented |= {first, *(first.rsplit(".", 1)[0] + other for other in others)}
    assert {name for name in entries if name[0] != "_"} <= documented


def heading_links(page: Path) -> set[str]:
    """What a link to a heading of the page ends in."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", told.lower()).strip().replace(" ", "-") for told in headings}


def test_every_link_within_the_project_leads_somewhere() -> None:
    found = 0
    for page in (*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")):
        for link in re.findall(r"\]\((?!http)([^)\s]+)\)", page.read_text()):
            path, _, heading = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {link}"
            assert not heading or heading in heading_links(target), f"{page.name}: {link}"
            found += 1
    assert found > 100


@pytest.mark.parametrize("name", [*EXPERIMENTS, *plugins.names("sweep")])
def test_every_experiment_is_documented_with_its_options(name: str) -> None:
    page = PAGES["experiments.md"]
    assert f"`kedro run --pipelines={name}` |" in page
    own = page.split(f"\n## `{name}`\n")[1].split("\n## ")[0]
    assert "Not to be concluded" in own
    if name in plugins.names("sweep"):
        for option in plugins.load("sweep", name).Options.model_fields:
            assert f"`{option}`" in own, option


def test_every_model_is_documented() -> None:
    page = (PROJECT / "docs" / "models.md").read_text()
    for name in plugins.names("model"):
        assert f"\n| `{name}` |" in page, name


def test_every_source_is_documented() -> None:
    page = (PROJECT / "docs" / "sources.md").read_text()
    folder = Path(str(sources.__file__)).parent
    for module in folder.glob("[a-z]*.py"):
        assert f"\n## `{module.stem}`" in page, module.stem
