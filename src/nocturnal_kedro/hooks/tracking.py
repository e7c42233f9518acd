"""What a finished run leaves for good: its folder, and what a tracking store is told of it."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import click
import pandas as pd
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from nocturnal_kedro.datasets.saved_scores import people_of
from nocturnal_kedro.hooks.record import RUN_RECORD, plain, relative
from nocturnal_kedro.registry.run_folder import RUNS, Model, Run, write_run_folder
from nocturnal_kedro.registry.tracking import Tracking, send_all

REPORT, SCORES, CELLS = ".report", ".night_scores", ".cell_scores"
LINE = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")


class RunFolders:
    """Writes a folder for every experiment whose report was made, and sends it on.

    What a run saved is there before this begins: where a folder cannot be sent it waits for the
    next run, or for `kedro runs send`.
    """

    def __init__(self) -> None:
        self._said = io.StringIO()
        self._listening: logging.Handler | None = None

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self) -> None:
        self._stop_listening()
        self._said = io.StringIO()
        self._listening = logging.StreamHandler(self._said)
        self._listening.setFormatter(LINE)
        logging.getLogger().addHandler(self._listening)

    @hook_impl(trylast=True)
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        self._stop_listening()
        made = sorted(name for name in pipeline.all_outputs() if name.endswith(REPORT))
        if not made:
            return
        parameters = catalog.load("parameters")
        tracking = Tracking.model_validate(parameters["tracking"])
        data_root = _data_root(catalog)
        for name in made:
            run = _gather(name.removesuffix(REPORT), pipeline, catalog, self._said.getvalue())
            folder = write_run_folder(run, data_root / RUNS)
            click.echo(f"Run folder: {relative(folder)}")
        click.echo(send_all(data_root, tracking))

    @hook_impl
    def on_pipeline_error(self) -> None:
        self._stop_listening()

    def _stop_listening(self) -> None:
        if self._listening:
            logging.getLogger().removeHandler(self._listening)
            self._listening = None


def _gather(experiment: str, pipeline: Pipeline, catalog: DataCatalog, said: str) -> Run:
    """Everything that a run of this experiment saved, and what it took from earlier ones."""
    own = sorted(n for n in pipeline.datasets() if n.startswith(f"{experiment}."))
    of_sweep = f"{experiment}{CELLS}" in own
    scored = [name for name in own if name.endswith(CELLS if of_sweep else SCORES)]
    models, logs = _of_cells(experiment, catalog) if of_sweep else _of_lanes(own, catalog)
    people = pd.concat([people_of(_path(catalog, name)) for name in scored], ignore_index=True)
    stages = catalog.load(RUN_RECORD)["stages"]
    return Run(
        experiment=experiment,
        sweep=of_sweep,
        models=models,
        selected=_selected(models, stages),
        parameters=plain(catalog.load("parameters")) | _selection(stages),
        stages=stages,
        datasets={n: _path(catalog, n).parent.name for n in own if _is_versioned(catalog, n)},
        made_from=catalog.load("made_from"),
        data=people["data"].mode()[0],
        summary=catalog.load(f"{experiment}.{'summary' if of_sweep else 'leaderboard'}"),
        people=people,
        figures=catalog.load(f"{experiment}.figures"),
        report=catalog.load(f"{experiment}{REPORT}"),
        logs=logs,
        log=said,
    )


def _of_lanes(
    own: list[str], catalog: DataCatalog
) -> tuple[dict[str, Model], dict[str, pd.DataFrame]]:
    """Every model and baseline of an experiment, and the epochs of those that were trained."""
    models, logs = {}, {}
    for name in own:
        if not name.endswith(SCORES):
            continue
        lane = name.split(".")[1]
        folder = _path(catalog, name.removesuffix(SCORES) + ".model")
        cost = catalog.load(name.removesuffix(SCORES) + ".cost")
        models[lane], log = _describe(lane, folder, _data_root(catalog), cost)
        if len(log):
            logs[lane] = log
    return models, logs


def _of_cells(sweep: str, catalog: DataCatalog) -> tuple[dict[str, Model], dict[str, pd.DataFrame]]:
    """Every cell of a sweep by its name; a training that several share is told of by each."""
    root = _data_root(catalog)
    models = {}
    for cell in catalog.load(f"{sweep}.cells"):
        seed = f", seed {cell['seed']}" if cell["seed"] is not None else ""
        name = f"{cell['question']}: {cell['cell']}, {cell['model']}{seed}"
        folder = catalog.load("trained").folder_of(cell["key"])
        models[name], _ = _describe(cell["model"], folder, root, {})
    return models, {}


def _describe(
    lane: str, folder: Path, root: Path, cost: dict[str, Any]
) -> tuple[Model, pd.DataFrame]:
    """What the artifact in a folder tells of itself; its weights are not looked at."""
    told = json.loads((folder / "artifact.json").read_text())
    record = {name: value for name, value in told["record"].items() if name != "learnt_from"}
    model = Model(
        name=told["name"],
        kind=told["kind"],
        seed=record.get("training", {}).get("seed"),
        artifact=folder.relative_to(root).as_posix(),
        options=told["options"],
        record=record,
        people=len(told["people"]),
        cost=cost,
    )
    return model, pd.read_csv(folder / "training_log.csv")


def _selected(models: dict[str, Model], stages: dict[str, Any]) -> tuple[str, ...]:
    there = {model.name for model in models.values() if model.kind == "model"}
    asked = _selection(stages)["models"]
    words = asked.split() if isinstance(asked, str) else asked
    return tuple(name for name in words if name in there)


def _selection(stages: dict[str, Any]) -> dict[str, Any]:
    """Sources, models and places, which `hooks.record` keeps beside the parameters."""
    told: dict[str, Any] = stages["reporting"]["parameters"]
    kept = ("sources", "models", "source_options", "raw_root", "data_root")
    return {name: told[name] for name in kept}


def _data_root(catalog: DataCatalog) -> Path:
    return Path(str(catalog.load("trained").root)).parents[1]


def _is_versioned(catalog: DataCatalog, name: str) -> bool:
    return getattr(catalog[name], "_version", None) is not None


def _path(catalog: DataCatalog, name: str) -> Path:
    dataset: Any = catalog[name]
    return Path(dataset._get_load_path())
