"""What a finished run leaves for good: its folder, and what a tracking store is told of it."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pandas as pd
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from nocturnal_kedro.datasets.saved_scores import people_of
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.hooks.command_line import told_on_the_command_line
from nocturnal_kedro.hooks.record import RUN_RECORD, plain, relative
from nocturnal_kedro.pipeline_registry import EXPERIMENTS
from nocturnal_kedro.registry.run_folder import RUNS, Model, Run, write_run_folder
from nocturnal_kedro.registry.tracking import Tracking, send_all

if TYPE_CHECKING:
    from nocturnal_kedro.training.trained import Trained

SELECTED = ("sources", "source_options", "raw_root", "data_root", "models")
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
    def after_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        self._stop_listening()
        made = sorted(name for name in pipeline.all_outputs() if name.endswith(REPORT))
        if not made:
            return
        tracking = Tracking.model_validate(catalog.load("parameters")["tracking"])
        data_root = _data_root(catalog)
        with told_on_the_command_line():
            for name in made:
                run = _gather(name.removesuffix(REPORT), catalog, self._said.getvalue())
                folder = _write(run, data_root / RUNS)
                click.echo(f"Run folder: {relative(folder)}")
            click.echo(send_all(data_root, tracking))

    @hook_impl
    def on_pipeline_error(self) -> None:
        self._stop_listening()

    def _stop_listening(self) -> None:
        if self._listening:
            logging.getLogger().removeHandler(self._listening)
            self._listening = None


def _write(run: Run, root: Path) -> Path:
    try:
        return write_run_folder(run, root)
    except OSError as error:
        raise InputError(
            f"the run is done and its results are saved, but its folder cannot be written to "
            f"'{root}' ({error}). Make room there, and make the report again: kedro run "
            f"--pipelines={run.experiment} --tags=reporting with the same --params."
        ) from error


def _gather(experiment: str, catalog: DataCatalog, said: str) -> Run:
    """Everything that a run of this experiment saved, and what it took from earlier ones."""
    of_sweep = experiment not in EXPERIMENTS
    datasets = {
        name: _path(catalog, name).parent.name
        for name in sorted(pipelines[experiment].datasets())
        if _is_versioned(catalog, name) and catalog.exists(name)
    }
    scored = [name for name in datasets if name.endswith(CELLS if of_sweep else SCORES)]
    people = pd.concat([people_of(_path(catalog, name)) for name in scored], ignore_index=True)
    models, logs = _of_cells(experiment, catalog) if of_sweep else _of_lanes(scored, catalog)
    audit = next(name for name in datasets if name.endswith("audit"))
    data = str(catalog.load(audit)["data"].iloc[0]) if of_sweep else _only(people["data"], scored)
    corpus = _corpus_of(data, _path(catalog, "corpus"), _path(catalog, audit))
    datasets |= {"corpus": corpus.parent.name}
    for lane, model in models.items():  # not the newest, where another one was trained since
        if f"{experiment}.{lane}.model" in datasets:
            datasets[f"{experiment}.{lane}.model"] = Path(model.artifact).parent.name
    stages = _stages_of(catalog.load(RUN_RECORD)["stages"], {*datasets.values()})
    return Run(
        experiment=experiment,
        sweep=of_sweep,
        models=models,
        selected=_selected(models, stages),
        parameters=_parameters(plain(catalog.load("parameters")), stages),
        stages=stages,
        datasets=datasets,
        made_from=json.loads((corpus / "made_from.json").read_text())["made_from"]["parts"],
        data=data,
        summary=catalog.load(f"{experiment}.{'summary' if of_sweep else 'leaderboard'}"),
        people=people,
        figures=catalog.load(f"{experiment}.figures"),
        report=catalog.load(f"{experiment}{REPORT}"),
        logs=logs,
        log=said,
    )


def _of_lanes(
    scored: list[str], catalog: DataCatalog
) -> tuple[dict[str, Model], dict[str, pd.DataFrame]]:
    """Every model and baseline of an experiment, and the epochs of those that were trained."""
    models, logs = {}, {}
    for name in scored:
        lane = name.split(".")[1]
        cost = catalog.load(name.removesuffix(SCORES) + ".cost")
        newest = _path(catalog, name.removesuffix(SCORES) + ".model")
        version = _path(catalog, name).parent.name
        folder = _with_key(cost.get("key"), newest, version, catalog.load("trained"))
        models[lane], log = _describe([folder], _data_root(catalog), cost)
        if len(log):
            logs[lane] = log
    return models, logs


def _with_key(key: str | None, newest: Path, version: str, trained: Trained) -> Path:
    """The artifact that the scores of a version are of: not one that was trained after them."""
    places = sorted(
        newest.parents[1].glob(f"*/{newest.name}"),
        key=lambda folder: (folder.parent.name == version, folder.parent.name),
        reverse=True,
    )
    for folder in (*places, trained.folder_of(key or "of no key")):
        file = folder / "artifact.json"
        if file.exists() and json.loads(file.read_text())["record"]["key"] == key:
            return folder
    raise InputError(
        f"the scores of '{newest.name}' are of a model that is not there any more (key {key}), and "
        f"the newest one in '{newest}' is another. Run the evaluation again."
    )


def _of_cells(sweep: str, catalog: DataCatalog) -> tuple[dict[str, Model], dict[str, pd.DataFrame]]:
    """Every variant of a sweep, of each model and seed, with all its trainings."""
    trained = catalog.load("trained")
    folders: dict[str, list[Path]] = {}
    for cell in catalog.load(f"{sweep}.cells"):
        seed = f", seed {cell['seed']}" if cell["seed"] is not None else ""
        name = f"{cell['question']}: {cell['cell']}, {cell['model']}{seed}"
        folders.setdefault(name, []).append(trained.folder_of(cell["key"]))
    root = _data_root(catalog)
    return {name: _describe(own, root, {})[0] for name, own in folders.items()}, {}


def _describe(folders: list[Path], root: Path, cost: dict[str, Any]) -> tuple[Model, pd.DataFrame]:
    """What artifacts tell of themselves, the last for all; their weights are not looked at."""
    every = [json.loads((folder / "artifact.json").read_text()) for folder in folders]
    told, folder = every[-1], folders[-1]
    record = {name: value for name, value in told["record"].items() if name != "learnt_from"}
    seconds = [of["record"].get("train_seconds") or 0.0 for of in every]
    model = Model(
        name=told["name"],
        kind=told["kind"],
        seed=record.get("training", {}).get("seed"),
        artifact=folder.relative_to(root).as_posix(),
        options=told["options"],
        record=record | {"train_seconds": sum(seconds)},
        people=len({person for of in every for person in of["people"]}),
        keys=tuple(dict.fromkeys(of["record"]["key"] for of in every)),
        cost=cost,
    )
    return model, pd.read_csv(folder / "training_log.csv")


def _only(data: pd.Series, scored: list[str]) -> str:
    if data.nunique() > 1:
        raise InputError(
            f"the scores in {', '.join(scored)} are of models fitted to different data. Run "
            f"training, evaluation and reporting again."
        )
    return str(data.iloc[0])


def _corpus_of(data: str, corpus: Path, audit: Path) -> Path:
    """The version of the corpus that was audited as these data: not one made after them."""
    versions = sorted(
        (p.parent.name for p in audit.parents[1].glob(f"*/{audit.name}")), reverse=True
    )
    for version in (audit.parent.name, *versions):
        of_version = audit.parents[1] / version / audit.name
        folder = corpus.parents[1] / version / corpus.name
        if folder.is_dir() and str(pd.read_csv(of_version)["data"].iloc[0]) == data:
            return folder
    raise InputError(
        f"the scores are of data ({data[:12]}) of which no version of the corpus is left below "
        f"'{corpus.parents[1]}'. Run the experiment again, whole."
    )


def _stages_of(stages: dict[str, Any], versions: set[str]) -> dict[str, Any]:
    """The record of those stages whose run saved what is used here.

    The record knows a stage of the last run alone: that of another experiment is left out.
    """
    return {
        stage: record
        for stage, record in stages.items()
        if record["run_id"] in versions or stage == "reporting"
    }


def _parameters(given: dict[str, Any], stages: dict[str, Any]) -> dict[str, Any]:
    """As each stage took them, and as given where none did.

    A stage records what was selected whether it took it or not: sources and folders are those of
    the first stage, models those of the last.
    """
    recorded = [stages[stage]["parameters"] for stage in stages]
    for own in recorded:
        given |= {name: value for name, value in own.items() if name not in SELECTED}
    return given | {n: recorded[0][n] for n in SELECTED} | {"models": recorded[-1]["models"]}


def _selected(models: dict[str, Model], stages: dict[str, Any]) -> tuple[str, ...]:
    there = {model.name for model in models.values() if model.kind == "model"}
    asked = stages["reporting"]["parameters"]["models"]
    words = asked.split() if isinstance(asked, str) else asked
    return tuple(name for name in words if name in there)


def _data_root(catalog: DataCatalog) -> Path:
    return Path(str(catalog.load("trained").root)).parents[1]


def _is_versioned(catalog: DataCatalog, name: str) -> bool:
    return not name.startswith("param") and getattr(catalog[name], "_version", None) is not None


def _path(catalog: DataCatalog, name: str) -> Path:
    dataset: Any = catalog[name]
    return Path(dataset._get_load_path())
