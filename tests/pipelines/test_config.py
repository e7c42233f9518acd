"""Config is data: for every env nothing undeclared, nothing missing, nothing orphaned."""

import ast
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from kedro.framework.context import KedroContext
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession

from nocturnal_kedro import plugins
from nocturnal_kedro.pipeline_registry import EXPERIMENTS
from tests.conftest import PROJECT

ENVS = sorted(folder.name for folder in (PROJECT / "conf").iterdir() if folder.is_dir())
STAGES = ("data_processing", "training", "evaluation", "reporting")
OTHERS = ("tuning", "overview", "migrate_ttm")
SWEEPS = plugins.names("sweep")
PEOPLE = {  # datasets with a row, a name or a window of a person
    "readings", "prepared", "series", "series_tally", "overlaps", "splits", "corpus", "origins",
    "answers", "trained", "migrated", "saved_scores",
    "{experiment}.origins", "{experiment}.outcomes", "{experiment}.tally",
    "{experiment}.cells", "{experiment}.forecasted", "{experiment}.cell_scores",
    "{experiment}.groups", "{experiment}.by_person",
    "{experiment}.{model}.peaks", "{experiment}.{model}.cards",
    "tally", "quality", "made_from", "outcomes",
    "{experiment}.{model}.model",
    "{experiment}.{model}.unfinished", "{experiment}.{model}.searches",
    "{experiment}.{model}.winner", "{experiment}.figures",
    "{experiment}.{model}.forecasts", "{experiment}.{model}.lows",
    "{experiment}.{model}.scores", "{experiment}.{model}.night_scores",
    "{experiment}.{model}.level_scores", "{experiment}.{model}.low_readings",
    "{experiment}.report", "{experiment}.tables",
}  # fmt: skip


@pytest.fixture(scope="module", params=ENVS)
def context(request: pytest.FixtureRequest, project: None) -> KedroContext:
    with KedroSession.create(project_path=PROJECT, env=request.param) as session:
        return session.load_context()


def test_every_stage_and_experiment_is_registered(context: KedroContext) -> None:
    assert set(pipelines) == {*STAGES, *OTHERS, *EXPERIMENTS, *SWEEPS, "__default__"}
    assert pipelines["__default__"].nodes == pipelines["nocturnal_point"].nodes
    names = {node.name for stage in STAGES for node in pipelines[stage].nodes}
    assert names == {node.name for node in pipelines["nocturnal_point"].nodes}
    for node in pipelines["nocturnal_point"].nodes:
        assert len(node.tags) == 1
        assert node.tags <= set(STAGES)


def test_no_dataset_is_undeclared_and_none_is_orphaned(context: KedroContext) -> None:
    declared = context.config_loader["catalog"]
    patterns = context.catalog.config_resolver  # the context makes a catalog each time
    used = set()
    for name in {name for pipeline in pipelines.values() for name in pipeline.datasets()}:
        if name.startswith("params:"):
            continue
        pattern = patterns.match_dataset_pattern(name)
        assert name in declared or pattern in declared, name
        used.add(name if name in declared else pattern)
    for_people = {"data_versions"}  # looked at by nobody but people
    assert {name for name in declared if not name.startswith("_")} == used | for_people


def test_no_parameter_is_missing_and_none_is_orphaned(context: KedroContext) -> None:
    given = context.config_loader["parameters"]
    inputs = {name for pipeline in pipelines.values() for name in pipeline.inputs()}
    taken = {n.removeprefix("params:") for n in inputs if "params:" in n}
    for name in taken:
        value = given
        for part in name.split("."):
            value = value[part]
    by_hooks = {"models", "seeds", "cluster", "experiment", "model"}
    assert {name.split(".")[0] for name in taken} | by_hooks == set(given)


def test_every_node_can_be_sent_to_another_process(context: KedroContext) -> None:
    for node in {node for pipeline in pipelines.values() for node in pipeline.nodes}:
        again = pickle.loads(pickle.dumps(node))
        assert again.name == node.name


def test_nobodys_rows_are_previewed(context: KedroContext) -> None:
    declared = context.config_loader["catalog"]
    previewed = set()
    for name, entry in declared.items():
        if not name.startswith("_"):
            told = entry["metadata"]["kedro-viz"]
            assert told["layer"]
            if told.get("preview", True):
                previewed.add(name)
    assert not previewed & PEOPLE
    assert previewed | PEOPLE == {name for name in declared if not name.startswith("_")}


def test_nodes_are_pure_and_short() -> None:
    """No path, no environment and no catalogue in a node, and at most 45 lines of it."""
    for file in (PROJECT / "src/nocturnal_kedro/pipelines").glob("*/nodes.py"):
        tree = ast.parse(file.read_text())
        imported = {
            (part.module if isinstance(part, ast.ImportFrom) else name.name).split(".")[0]
            for part in ast.walk(tree)
            if isinstance(part, ast.Import | ast.ImportFrom)
            for name in part.names
        }
        assert imported >= {"pandas", "nocturnal_kedro"}, file  # it sees both kinds of import
        assert not imported & {"os", "pathlib", "kedro"}, file
        for part in tree.body:
            if isinstance(part, ast.FunctionDef):
                assert (part.end_lineno or 0) - part.lineno <= 45, part.name


def test_telemetry_is_refused() -> None:
    assert (PROJECT / ".telemetry").read_text().strip() == "consent: false"


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--pipeline", "--pipelines"])
def test_both_spellings_of_the_command_run(option: str, tmp_path: Path) -> None:
    small = "source_options.simulated.subjects=8,source_options.simulated.days=14"
    given = f"data_root={tmp_path},{small}"
    done = subprocess.run(
        [str(Path(sys.executable).parent / "kedro"), "run", f"{option}=data_processing",
         f"--params={given}"],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("05_model_input/origins.csv/*/origins.csv"))) == 1


def test_a_mistake_on_the_command_line_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    given = f"sources=azt1d,raw_root={tmp_path},data_root={tmp_path}"
    done = subprocess.run(
        [str(Path(sys.executable).parent / "kedro"), "run", f"--params={given}"],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(told) == 1
    assert "source 'azt1d': no 'azt1d/CGM Records/Subject */Subject *.csv' under" in told[0]
    assert "Traceback" not in done.stderr + done.stdout


def test_the_command_line_does_not_load_what_only_nodes_need() -> None:
    script = (
        "import json, sys; from kedro.framework.startup import bootstrap_project; "
        "from kedro.framework.project import pipelines; "
        f"bootstrap_project({str(PROJECT)!r}); dict(pipelines); "
        "print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert not loaded & {"torch", "plotly", "transformers", "chronos", "tsfm_public", "dask"}
