"""A finished run of an experiment as one folder that can be zipped and sent.

    EXPERIMENT_MODELS_DATE/
        experiment_config.yaml          every parameter as it was, defaults filled in
        metadata.json                   commit, versions, hardware, data and its raw files, models
        report.html
        results/metrics_summary.json    every measure with its interval
        results/detailed_results.csv    errors of every model by person, validation among them
        results/figures/                the report's, each a page of its own
        logs/run.log, logs/MODEL.csv    what the run said, and the epochs of each training

No reading of anybody is in it but for what the report and its figures show.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from nocturnal_kedro.errors import InputError, require_known

RUNS = "runs"  # below the data_root
METADATA, CONFIG = "metadata.json", "experiment_config.yaml"
SUMMARY, DETAILS = "results/metrics_summary.json", "results/detailed_results.csv"
FIGURES, LOGS, REPORT = "results/figures", "logs", "report.html"
SHOWN_MODELS = 4  # in the name of a folder
FORMAT = 1  # of the metadata


@dataclass(frozen=True)
class Model:
    """One fitted model or baseline of a run, as its artifact tells it."""

    name: str
    kind: str  # "model" or "baseline"
    seed: int | None  # of its training; None of what has none
    artifact: str  # its folder, relative to the data_root
    options: dict[str, Any]
    record: dict[str, Any]  # see training.artifact.Artifact
    people: int  # whose readings it has learnt from
    keys: tuple[str, ...]  # of its trainings: a variant of a sweep may have one for each person
    cost: dict[str, Any] = field(default_factory=dict)  # of its forecasts


@dataclass(frozen=True)
class Run:
    """What a run leaves to those who were not there."""

    experiment: str
    sweep: bool  # its models are cells: variants, none of them to be used
    models: dict[str, Model]  # by lane, or by cell
    selected: tuple[str, ...]  # the models that the run was asked for
    parameters: dict[str, Any]
    stages: dict[str, dict[str, Any]]  # the record of the stages that these results are of
    datasets: dict[str, str]  # what they are in and made from: dataset -> version
    made_from: dict[str, Any]  # raw files by their hashes
    data: str  # fingerprint of corpus, splits and origins
    summary: pd.DataFrame  # the leaderboard, or the summary of a sweep
    people: pd.DataFrame  # errors by model, split and person
    figures: dict[str, dict[str, Any]]  # by title, as plotly's JSON
    report: str
    logs: dict[str, pd.DataFrame]  # epochs of each model that was trained
    log: str  # what the run said

    @property
    def of_reporting(self) -> dict[str, Any]:
        """The record of the run that made the report."""
        return self.stages["reporting"]


def write_run_folder(run: Run, root: Path) -> Path:
    """Write the folder of a run below `root`, whole: built beside it and renamed.

    Where one of the same name is there, as of a run of the same second, a number is added.
    """
    root.mkdir(parents=True, exist_ok=True)
    fresh = root / f".{name_of(run)}.{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _write(run, fresh)
        return _take_name(fresh, root / name_of(run))
    finally:  # of a folder that is whole nothing is left here
        shutil.rmtree(fresh, ignore_errors=True)


def _write(run: Run, folder: Path) -> None:
    for below in (FIGURES, LOGS):
        (folder / below).mkdir(parents=True)
    _write_config(run, folder / CONFIG)
    _write_json(_metadata(run), folder / METADATA)
    _write_json(_rows(run.summary), folder / SUMMARY)
    run.people.to_csv(folder / DETAILS, index=False)
    _write_figures(run.figures, folder / FIGURES)
    (folder / REPORT).write_text(run.report, encoding="utf-8")
    (folder / LOGS / "run.log").write_text(run.log, encoding="utf-8")
    for name, log in run.logs.items():
        log.to_csv(folder / LOGS / f"{name}.csv", index=False)


def name_of(run: Run) -> str:
    """EXPERIMENT_MODELS_DATE, of the moment at which the run began."""
    began = run.of_reporting["started"][:19].replace(":", ".")
    shown = run.selected[:SHOWN_MODELS]
    more = len(run.selected) - len(shown)
    models = "+".join(shown or ("baselines",)) + (f"+{more}-more" if more else "")
    return f"{run.experiment}_{models}_{began}"


def read_metadata(folder: Path) -> dict[str, Any]:
    """What `metadata.json` of a run folder tells; `InputError` where it cannot be read."""
    try:
        metadata: dict[str, Any] = json.loads((folder / METADATA).read_text())
        form = metadata["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{folder}' is no folder of a run: its {METADATA} cannot be read ({error!r}). Give "
            f"one that `kedro runs list` names."
        ) from error
    if form != FORMAT:
        raise InputError(
            f"'{folder}' was written in form {form} by another version of the project; this one "
            f"reads form {FORMAT}."
        )
    return metadata


def read_people(file: Path) -> pd.DataFrame:
    """The errors by person of a run: `detailed_results.csv`, cell "" outside sweeps."""
    text = ("source", "subject", "cell", "data")
    return pd.read_csv(file, dtype=dict.fromkeys(text, str)).fillna({"cell": ""})


def of_seed(people: pd.DataFrame, seed: Any) -> pd.DataFrame:
    """Those of one training seed; what was trained with a single one need not name it."""
    return (
        people if people["seed"].nunique() < 2 else people[people["seed"].astype(str) == str(seed)]
    )


def run_folders(root: Path) -> list[Path]:
    """All of them below `root`, the oldest first."""
    found = [file.parent for file in root.glob(f"*/{METADATA}") if file.parent.name[0] != "."]
    return sorted(found, key=lambda folder: (folder.name.rsplit("_", 1)[-1], folder.name))


def trace(told_by: Path, model: str, data_root: Path) -> dict[str, Any]:
    """Where the numbers of a model come from: run, commit, data, raw files by their hashes.

    `told_by` is a run folder, or a table that the run saved, e.g. its leaderboard. Raises
    `InputError` where no run folder below `data_root` tells of it.
    """
    folder = told_by if (told_by / METADATA).exists() else _run_of(told_by, data_root)
    metadata = read_metadata(folder)
    named = metadata["models"]
    require_known(f"model of '{folder.name}'", model, named)
    own = named[model]
    return {
        "folder": str(folder),
        **{name: metadata[name] for name in ("run_id", "command", "git", "data", "stages")},
        "model": model,
        "artifact": str(data_root / own["artifact"]),
        "keys": own["keys"],
        "fitted_to": own["record"]["data"],
        "raw_files": raw_files(metadata),
    }


def raw_files(metadata: dict[str, Any]) -> dict[str, str]:
    """Every file that a run's data were read from, by its SHA-256."""
    parts = metadata["made_from"].values()
    return {file: digest for part in parts for file, digest in part["files"].items()}


def _run_of(table: Path, data_root: Path) -> Path:
    """The run folder of a table at .../EXPERIMENT/NAME/VERSION/NAME."""
    table = table.resolve()
    if len(table.parents) > 2:
        version, experiment = table.parent.name, table.parents[2].name
        for folder in reversed(run_folders(data_root / RUNS)):
            datasets = read_metadata(folder)["datasets"]
            if datasets.get(f"{experiment}.{table.stem}") == version:
                return folder
    raise InputError(
        f"'{table}' is neither a run folder nor a table of a run that has one below "
        f"'{data_root / RUNS}'. Give the leaderboard of a run, .../leaderboard.csv/VERSION/"
        f"leaderboard.csv, with its --data-root."
    )


def _metadata(run: Run) -> dict[str, Any]:
    of_run = {
        name: run.of_reporting[name]
        for name in ("run_id", "started", "command", "environment", "git", "versions", "hardware")
    }
    return {
        "format": FORMAT,
        "experiment": run.experiment,
        "sweep": run.sweep,
        "selected": list(run.selected),
        **of_run,
        "seconds": {stage: record["seconds"] for stage, record in run.stages.items()},
        "stages": {stage: record["run_id"] for stage, record in run.stages.items()},
        "data": run.data,
        "made_from": run.made_from,
        "datasets": run.datasets,
        "models": {lane: asdict(model) for lane, model in run.models.items()},
    }


def _write_config(run: Run, file: Path) -> None:
    from omegaconf import OmegaConf

    told = {
        "experiment": run.experiment,
        "command": run.of_reporting["command"],
        "environment": run.of_reporting["environment"],
        "parameters": run.parameters,
    }
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(told)), encoding="utf-8")


def _write_json(content: Any, file: Path) -> None:
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON can hold them; what is missing is null."""
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    return rows


def _write_figures(figures: dict[str, dict[str, Any]], folder: Path) -> None:
    """Each a page that opens without a network; they share one script."""
    if not figures:
        return
    from plotly.io import from_json

    for number, (title, figure) in enumerate(figures.items(), 1):
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60]
        from_json(json.dumps(figure)).update_layout(title=title).write_html(
            folder / f"{number:02d}-{slug}.html", include_plotlyjs="directory", full_html=True
        )


def _take_name(fresh: Path, wanted: Path) -> Path:
    for number in range(1, 1000):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            if not folder.exists():
                fresh.rename(folder)
                return folder
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process was faster
                raise
    raise InputError(f"there are 999 folders called '{wanted}' already: delete some of them.")
