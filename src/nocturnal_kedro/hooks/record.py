"""What made a run, kept as the dataset `run_record`, and what a run says at its end."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from pydantic import BaseModel

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.hooks.command_line import told_on_the_command_line
from nocturnal_kedro.metrics.compare import FEWEST_TO_TELL_APART
from nocturnal_kedro.metrics.overview import tell_overview
from nocturnal_kedro.registry.migration import tell_migration
from nocturnal_kedro.training.space import told
from nocturnal_kedro.versions import versions

if TYPE_CHECKING:
    import pandas as pd

RUN_RECORD = "run_record"
# What Kedro calls the options of `kedro run` that narrow a run -> how they are typed.
PARTS_OF_A_RUN = {
    "node_names": "--nodes",
    "tags": "--tags",
    "namespaces": "--namespaces",
    "from_nodes": "--from-nodes",
    "to_nodes": "--to-nodes",
    "from_inputs": "--from-inputs",
    "to_outputs": "--to-outputs",
    "load_versions": "--load-versions",
    "only_missing_outputs": "--only-missing-outputs",
}
STAGES = (
    "data_processing", "tuning", "training", "evaluation", "reporting", "overview", "migrate_ttm",
)  # fmt: skip


class RunRecord:
    """Keeps what made each stage: command, parameters, versions, commit, machine, seconds.

    The record is the dataset `run_record`: {"stages": {stage: {...}}}. A stage that a run does not
    repeat, or fails to, keeps the record of the run that made it.
    """

    def __init__(self) -> None:
        self._selection: dict[str, Any] = {}
        self._earlier: dict[str, dict[str, Any]] = {}
        self._stages: dict[str, dict[str, Any]] = {}
        self._counted_until: dict[str, float] = {}
        self._saved: set[str] = set()  # stages of which this run has saved something

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        given = context.config_loader["parameters"]
        shared = context.config_loader["globals"]
        self._selection = {name: given.get(name, value) for name, value in shared.items()}
        self._selection["models"] = given["models"]

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        made_by = {
            "run_id": run_params["run_id"],
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": _command(run_params),
            "environment": run_params["env"] or "local",
            "git": _git(Path(run_params["project_path"])),
            "versions": versions(),
            "hardware": {
                "platform": platform.platform(),
                "processor": _processor(),
                "cores": _cores(),
            },
        }
        self._counted_until, self._saved = {}, set()
        with told_on_the_command_line():
            self._earlier = _earlier_stages(catalog)
        self._stages = dict(self._earlier)
        for stage in sorted({tag for node in pipeline.nodes for tag in node.tags}):
            nodes = pipeline.only_nodes_with_tags(stage)
            parameters = self._selection | _parameters_of(nodes, catalog)
            self._stages[stage] = {**made_by, "parameters": parameters, "seconds": 0.0}
        catalog.save(RUN_RECORD, {"stages": self._stages})

    @hook_impl
    def before_dataset_loaded(self, node: Node) -> None:
        self._counted_until.setdefault(node.name, time.perf_counter())

    @hook_impl
    def before_node_run(self, node: Node, inputs: dict[str, Any]) -> dict[str, Any] | None:
        self._count_seconds(node)
        # In a process of its own a node has the record as it was saved before the run.
        in_hand = RUN_RECORD in inputs and self._stages
        return {RUN_RECORD: {"stages": _in_order(self._stages)}} if in_hand else None

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        self._count_seconds(node)

    @hook_impl
    def after_dataset_saved(self, node: Node) -> None:
        self._count_seconds(node)
        self._saved |= node.tags

    @hook_impl
    def after_pipeline_run(self, catalog: DataCatalog) -> None:
        catalog.save(RUN_RECORD, {"stages": _in_order(self._stages)})

    @hook_impl
    def on_pipeline_error(self, catalog: DataCatalog) -> None:
        made = {stage: self._stages[stage] for stage in self._saved}
        catalog.save(RUN_RECORD, {"stages": _in_order(self._earlier | made)})

    def _count_seconds(self, node: Node) -> None:
        """Add what the node has taken since it was last looked at, loading and saving included."""
        now = time.perf_counter()
        spent = now - self._counted_until.get(node.name, now)
        self._counted_until[node.name] = now
        for stage in node.tags & self._stages.keys():
            self._stages[stage]["seconds"] += spent


class Summary:
    """The last word of a run: its tables in short, each report's path, and a winner's command."""

    @hook_impl(trylast=True)
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        outputs = sorted(pipeline.all_outputs())
        for name in outputs:
            if name.endswith(".leaderboard"):
                click.echo(_in_short(catalog.load(name)))
        for name in outputs:
            if name.endswith(".report"):
                click.echo(f"Report: {_path(catalog, name)}")
            if name == "overview":
                click.echo(tell_overview(catalog.load(name)))
                click.echo(f"Overview: {_path(catalog, name)}")
            if name == "migration":
                click.echo(tell_migration(catalog.load(name)))
                click.echo(f"Migration: {_path(catalog, name)}")
            if name.endswith(".trials"):
                click.echo(_search_in_short(catalog.load(name)))
                click.echo(f"Trials: {_path(catalog, name)}")
            if name.endswith(".winner"):
                where = f" --env={run_params['env']}" if run_params["env"] else ""
                file = shlex.quote(str(_path(catalog, name)))
                click.echo(f"The winner is taken by: kedro run --config={file}{where}")


def _earlier_stages(catalog: DataCatalog) -> dict[str, dict[str, Any]]:
    if not catalog.exists(RUN_RECORD):
        return {}
    try:
        return catalog.load(RUN_RECORD)["stages"]
    except (DatasetError, KeyError, TypeError) as error:
        raise InputError(
            f"the record of earlier runs cannot be read: {catalog[RUN_RECORD]}. Delete that file; "
            f"what it told of earlier runs is lost, their results are not."
        ) from error


def _command(run_params: dict[str, Any]) -> str:
    parts = ["kedro", "run"]
    if run_params["pipeline_names"]:
        parts.append(f"--pipelines={','.join(run_params['pipeline_names'])}")
    if run_params["env"]:
        parts.append(f"--env={run_params['env']}")
    for name, option in PARTS_OF_A_RUN.items():
        if given := run_params.get(name):
            value = "" if given is True else "=" + ",".join(_words(given))
            parts.append(option + value)
    parameters = _flatten(run_params["runtime_params"])
    if parameters:
        pairs = (f"{name}={value}" for name, value in parameters.items())
        parts.append("--params=" + ",".join(pairs))
    return shlex.join(parts)


def _words(given: Any) -> list[str]:
    if isinstance(given, dict):
        return [f"{name}:{value}" for name, value in given.items()]
    return [given] if isinstance(given, str) else list(given)


def _flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            words = isinstance(value, list | tuple)
            flat[prefix + name] = " ".join(map(str, value)) if words else value
    return flat


def _git(project: Path) -> dict[str, Any]:
    """Commit and whether files differ from it; None where the project is not a git checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=project, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(git("status", "--porcelain")) if commit else None}


def _cores() -> int | None:
    """Cores that this process may use, where the system tells."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _parameters_of(pipeline: Pipeline, catalog: DataCatalog) -> dict[str, Any]:
    """Those top-level parameters that the nodes take; typed ones whole, with their defaults."""
    whole = (name for name in pipeline.inputs() if name.startswith("params:"))
    taken = {name.removeprefix("params:").split(".")[0] for name in whole}
    given = catalog.load("parameters")
    return {name: plain(value) for name, value in given.items() if name in taken}


def _in_order(stages: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """From the raw files to the report."""
    return {stage: stages[stage] for stage in STAGES if stage in stages}


def plain(value: Any) -> Any:
    """Parameters as JSON can hold them: records become dicts."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return value


def _in_short(leaderboard: pd.DataFrame) -> str:
    """The leaderboard as a few lines of text: errors, skill, and who is tied with the best."""
    lines = []
    for split, rows in leaderboard.groupby("split"):
        nights, subjects = rows[["nights", "subjects"]].iloc[0]
        few = ": too few to tell models apart" * (subjects < FEWEST_TO_TELL_APART)
        lines += [
            "",
            f"{split}: {nights} origins of {subjects} people{few}; RMSE, MAE and CRPS in mg/dL",
        ]
        lines += [f"{'model':<18}{'RMSE':>7}{'95 % interval':>18}{'MAE':>7}{'CRPS':>7}{'skill':>7}"]
        for place, row in enumerate(rows.itertuples()):
            tied = "  tied with the best" * (row.tied_with_best and not few)
            standing = "  best" if place == 0 else tied
            interval = f"{row.rmse_low_mg_dl:.1f} to {row.rmse_high_mg_dl:.1f}"
            lines.append(
                f"{row.model:<18}{row.rmse_mg_dl:>7.1f}{interval:>18}{row.mae_mg_dl:>7.1f}"
                f"{row.crps_mg_dl:>7.1f}"
                f"{row.skill_vs_last_value:>7.2f}{standing}"
            )
    return "\n".join([*lines[1:], ""])


def _search_in_short(trials: pd.DataFrame) -> str:
    """How the trials ended, and the values of the best."""
    counts = ", ".join(f"{n} {state}" for state, n in trials["state"].value_counts().items())
    complete = trials[trials["state"] == "complete"]
    best = complete.loc[complete["validation_rmse"].idxmin()]
    values = {name: best[name] for name in list(trials)[list(trials).index("failure") + 1 :]}
    return (
        f"{len(trials)} trials: {counts}; validation RMSE in scaled units: "
        f"{trials['validation_rmse'].iloc[0]:.4f} in trial 1, "
        f"{best['validation_rmse']:.4f} in the best, trial {best['trial']}: {told(values)}"
    )


def _path(catalog: DataCatalog, name: str) -> Path:
    """Of a versioned dataset, relative to where the user stands if it lies below."""
    dataset: Any = catalog[name]
    return relative(Path(dataset._get_load_path()))


def relative(path: Path) -> Path:
    """As it is shown: from where the user stands, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
