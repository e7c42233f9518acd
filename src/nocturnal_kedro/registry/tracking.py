"""Folders of runs to a tracking store: a run of the experiment, and one below it for each model.

The store is told what the folder holds and nothing else, so that a folder can be sent at any time:
those that could not be sent are the queue.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
from pydantic import BaseModel, field_validator

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.compare import Comparison
from nocturnal_kedro.metrics.significance import bootstrap_means, interval
from nocturnal_kedro.registry.run_folder import (
    CONFIG,
    DETAILS,
    LOGS,
    METADATA,
    RUNS,
    SUMMARY,
    of_seed,
    read_metadata,
    read_people,
    run_folders,
)
from nocturnal_kedro.registry.store import (
    NotInstalledError,
    Store,
    StoreError,
    default_uri,
    locked,
    open_store,
    told_of,
)

logger = logging.getLogger(__name__)

SENT = ".sent"  # beside the run folders: of each a file, store -> its run
MODEL = "model"  # among a run's artifacts: that of its model
PARENT = "mlflow.parentRunId"
FOLDER = "nocturnal.folder"
DIGEST = "nocturnal.digest"  # the tag by which a folder is found again: of its metadata
MEASURES = ("rmse_mg_dl", "mae_mg_dl", "crps_mg_dl")
MOST_PARAMS, MOST_METRICS = 100, 900  # that a store takes in one request
LONGEST = 5_000  # of a parameter or tag


class Tracking(BaseModel, extra="forbid", frozen=True):
    """Where finished runs are sent; their folders are written anyway."""

    uri: str | None = None  # None: sqlite:///DATA_ROOT/mlflow.db
    send: bool = True
    register_models: bool = True  # those of experiments; cells of sweeps are not

    @field_validator("uri")
    @classmethod
    def _without_password(cls, given: str | None) -> str | None:
        if given and urlsplit(given).password:
            raise ValueError(
                "uri holds a password, and parameters are recorded: give it by the environment, "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return given


def send_all(data_root: Path, tracking: Tracking) -> str:
    """Send every run folder below `data_root` that the store does not have; told in a line.

    Where the store cannot be reached, folders wait: nothing is lost, and the next call tries again.
    """
    uri = tracking.uri or default_uri(data_root)
    root = data_root / RUNS
    if not tracking.send:
        return "Tracking store: not asked (tracking.send is false)"
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / ".sending"):  # of two, the second finds what the first has sent
        unsent = waiting(data_root, uri)
        if not unsent:
            return f"Tracking store: {uri} has every run"
        refused = 0
        try:
            store = open_store(uri)
            for folder in unsent:
                try:
                    send(store, folder, data_root, tracking)
                except StoreError:
                    raise
                except InputError as error:  # of this folder: those after it are sent
                    refused += 1
                    logger.warning("%s cannot be sent: %s", folder.name, error)
        except NotInstalledError as error:
            return f"Tracking store: not told, {error}; then the next run sends this one, too."
        except StoreError as error:
            logger.warning("%s", error)
            left = len(waiting(data_root, uri))
            return (
                f"Tracking store: it could not be reached (above), and {_count(left)} for it. "
                f"Nothing is lost: the next run sends what waits, or `kedro runs send`."
            )
    faulty = f"; {refused} of the run folders cannot be sent (above)" if refused else ""
    return f"Tracking store: {uri}{faulty}"


def _count(folders: int) -> str:
    return "1 run folder waits" if folders == 1 else f"{folders} run folders wait"


def waiting(data_root: Path, uri: str) -> list[Path]:
    """The run folders that a store was not told of, the oldest first."""
    return [folder for folder in run_folders(data_root / RUNS) if uri not in _sent(folder)]


def send(store: Store, folder: Path, data_root: Path, tracking: Tracking) -> str:
    """Send one folder, and return the identifier of its run; sent twice it is there once.

    Raises `StoreError` where the store fails half-way: what was begun is done anew the next time.
    """
    metadata = read_metadata(folder)
    with store.alone(), told_of(store.uri):
        experiment_id = store.experiment(metadata["experiment"])
        run_id = _already(store, experiment_id, _digest(folder))
        if run_id is None:
            run_id = _send_whole(store, experiment_id, folder, metadata, data_root)
    if tracking.register_models:
        _register(store, run_id, folder, metadata, data_root)
    file = _sent_file(folder)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(_sent(folder) | {store.uri: run_id}, indent=2) + "\n")
    return run_id


def _sent(folder: Path) -> dict[str, str]:
    file = _sent_file(folder)
    try:
        return json.loads(file.read_text()) if file.exists() else {}
    except ValueError as error:
        raise InputError(
            f"'{file}' cannot be read ({error}). Delete it: the store knows what it has."
        ) from error


def _sent_file(folder: Path) -> Path:
    return folder.parent / SENT / f"{folder.name}.json"


def _digest(folder: Path) -> str:
    """Of two runs of one name, as of two data_roots in the same second, each has its own."""
    return hashlib.sha256((folder / METADATA).read_bytes()).hexdigest()


def _already(store: Store, experiment_id: str, digest: str) -> str | None:
    """The run of a folder that is wholly there; one that was begun and not ended is taken away."""
    found = store.client.search_runs([experiment_id], f"tags.\"{DIGEST}\" = '{digest}'")
    for run in found:
        if run.info.status == "FINISHED":
            return str(run.info.run_id)
        for child in store.client.search_runs(
            [experiment_id], f"tags.\"{PARENT}\" = '{run.info.run_id}'"
        ):
            store.client.delete_run(child.info.run_id)
        store.client.delete_run(run.info.run_id)
    return None


def _send_whole(
    store: Store, experiment_id: str, folder: Path, metadata: dict[str, Any], data_root: Path
) -> str:
    client = store.client
    began = int(datetime.fromisoformat(metadata["started"]).timestamp() * 1000)
    config = _config(folder)
    tags = _tags(metadata, config)
    known = {FOLDER: folder.name, DIGEST: _digest(folder)}
    parent = client.create_run(experiment_id, began, tags | known, folder.name)
    run_id = str(parent.info.run_id)
    _log_params(store, run_id, _flat(config["parameters"]))
    seconds = {f"seconds.{stage}": value for stage, value in metadata["seconds"].items()}
    _log_metrics(store, run_id, _once(seconds))
    store.put(run_id, folder)

    measured = _measured(folder, metadata, config)
    for lane, model in metadata["models"].items():
        child = client.create_run(
            experiment_id, began, tags | {PARENT: run_id} | _tags_of(model), lane
        )
        own = str(child.info.run_id)
        options = {f"options.{name}": value for name, value in model["options"].items()}
        training = {f"training.{n}": v for n, v in model["record"].get("training", {}).items()}
        _log_params(store, own, _flat(options | training))
        _log_metrics(store, own, _once(measured[lane] | _costs(model)))
        _log_metrics(store, own, _curves(folder / LOGS / f"{lane}.csv"))
        artifact = data_root / model["artifact"]
        if not metadata["sweep"] and artifact.is_dir():
            store.put(own, artifact, MODEL)
        client.set_terminated(own)
    client.set_terminated(run_id)  # the last word: without it the folder is sent anew
    return run_id


def _register(
    store: Store, run_id: str, folder: Path, metadata: dict[str, Any], data_root: Path
) -> None:
    from nocturnal_kedro.registry.models import Registry

    if metadata["sweep"]:
        return
    registry = Registry(store.uri, store)
    for lane, model in metadata["models"].items():
        artifact = data_root / model["artifact"]
        if not artifact.is_dir():
            logger.warning("'%s' of %s is not registered: %s is gone", lane, folder, artifact)
            continue
        with told_of(store.uri):
            child = registry.run_of(run_id, lane)
        registry.register_model(artifact, metadata["experiment"], run_id=child)


def _tags(metadata: dict[str, Any], config: dict[str, Any]) -> dict[str, str]:
    """What is the same of a run and of its models: where the numbers come from."""
    git, hardware = metadata["git"], metadata["hardware"]
    tags = {
        "mlflow.source.name": metadata["command"],
        "mlflow.source.type": "PROJECT",
        "mlflow.source.git.commit": git["commit"] or "",
        "nocturnal.git_dirty": git["dirty"],
        "nocturnal.run": metadata["run_id"],
        "nocturnal.command": metadata["command"],
        "nocturnal.environment": metadata["environment"],
        "nocturnal.config": hashlib.sha256(
            json.dumps(config["parameters"], sort_keys=True).encode()
        ).hexdigest()[:16],
        "nocturnal.data": metadata["data"],
        "nocturnal.raw": _raw_fingerprint(metadata),
        "nocturnal.sources": " ".join(sorted({part["source"] for part in _parts(metadata)})),
        "nocturnal.hardware": ", ".join(f"{name} {value}" for name, value in hardware.items()),
    }
    return {name: str(value)[:LONGEST] for name, value in tags.items()}


def _tags_of(model: dict[str, Any]) -> dict[str, str]:
    base = {
        "nocturnal.model": model["name"],
        "nocturnal.kind": model["kind"],
        "nocturnal.strategy": model["options"].get("strategy", ""),
        "nocturnal.seed": "" if model["seed"] is None else str(model["seed"]),
        "nocturnal.key": model["record"]["key"],
        "nocturnal.device": model["record"].get("hardware", {}).get("name", ""),
    }
    return {name: str(value)[:LONGEST] for name, value in base.items()}


def _parts(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    return list(metadata["made_from"].values())


def _raw_fingerprint(metadata: dict[str, Any]) -> str:
    """Of all raw files by their hashes."""
    files = sorted(json.dumps(part["files"], sort_keys=True) for part in _parts(metadata))
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def _config(folder: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(folder / CONFIG))  # type: ignore[return-value]


def _costs(model: dict[str, Any]) -> dict[str, float]:
    record, cost = model["record"], model["cost"]
    told = {
        "training_hours": (record.get("train_seconds") or 0.0) / 3600,
        "parameters": record.get("parameters"),
        "trained_parameters": record.get("trained_parameters"),
        "best_epoch": record.get("best_epoch"),
        "people": model["people"],
    } | {f"cost.{name}": value for name, value in cost.items()}
    return {n: float(v) for n, v in told.items() if isinstance(v, int | float)}


def _measured(
    folder: Path, metadata: dict[str, Any], config: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Every measure of each lane, as SPLIT.MEASURE; errors with their intervals over people.

    Of several seeds each lane has its own errors; the rest of a leaderboard is told where it is of
    that lane alone.
    """
    people = read_people(folder / DETAILS)
    given = config["parameters"]
    own = given.get(metadata["experiment"]) or {}
    comparison = Comparison.model_validate(own.get("comparison") or given["comparison"])
    measured: dict[str, dict[str, float]] = {lane: {} for lane in metadata["models"]}
    rows = json.loads((folder / SUMMARY).read_text())
    for lane, model in metadata["models"].items():
        told = measured[lane]
        for row in rows:
            if _is_of(row, lane, model) and row.get("seeds") in (None, 1):
                told |= {
                    f"{row['split']}.{name}": float(value)
                    for name, value in row.items()
                    if isinstance(value, int | float) and name not in ("number", "seeds")
                }
        for split, scored in _rows_of(people, lane, model).groupby("split"):
            values_KP = scored[list(MEASURES)].to_numpy(float).T
            means_RK = bootstrap_means(values_KP, comparison.resamples, comparison.seed)
            ends = np.transpose(interval(means_RK))
            for name, values_P, (low, high) in zip(MEASURES, values_KP, ends, strict=True):
                short = f"{split}.{name.removesuffix('_mg_dl')}"
                told[f"{short}_mg_dl"] = float(values_P.mean())
                told[f"{short}_low_mg_dl"], told[f"{short}_high_mg_dl"] = float(low), float(high)
            told[f"{split}.people"] = float(len(scored))
            told[f"{split}.nights"] = float(scored["nights"].sum())
    return measured


def _is_of(row: dict[str, Any], lane: str, model: dict[str, Any]) -> bool:
    """Whether a row of the summary is of this lane, over all sources and nights."""
    if "question" in row:
        cell = f"{row['question']}: {row['cell']}, {row['model']}"
        return row["group"] == "all" and lane.split(", seed ")[0] == cell
    return row["model"] == model["name"] and row.get("source", "all") == "all"


def _rows_of(people: pd.DataFrame, lane: str, model: dict[str, Any]) -> pd.DataFrame:
    """The people of a lane, or of a variant."""
    own = people[people["model"] == model["name"]]
    if (own["cell"] != "").any():
        own = own[lane.split(", seed ")[0] == own["cell"] + ", " + own["model"]]
    return of_seed(own, model["seed"])


def _log_params(store: Store, run_id: str, params: dict[str, str]) -> None:
    from mlflow.entities import Param

    given = [Param(name, value[:LONGEST]) for name, value in params.items()]
    for first in range(0, len(given), MOST_PARAMS):
        store.client.log_batch(run_id, params=given[first : first + MOST_PARAMS])


def _log_metrics(store: Store, run_id: str, metrics: list[tuple[str, float, int]]) -> None:
    """Names, values and steps; what is not finite is left out."""
    from mlflow.entities import Metric

    now = int(datetime.now().timestamp() * 1000)
    told = [Metric(name, value, now, step) for name, value, step in metrics if math.isfinite(value)]
    for first in range(0, len(told), MOST_METRICS):
        store.client.log_batch(run_id, metrics=told[first : first + MOST_METRICS])


def _once(metrics: dict[str, float]) -> list[tuple[str, float, int]]:
    return [(name, value, 0) for name, value in metrics.items()]


def _curves(file: Path) -> list[tuple[str, float, int]]:
    """Each number of each epoch, at its step."""
    if not file.exists():
        return []
    log = pd.read_csv(file)
    stages = "stage" in log and log["stage"].nunique() > 1
    return [
        (f"{row['stage']}.{name}" if stages else name, float(value), int(row["epoch"]))
        for row in log.to_dict("records")
        for name, value in row.items()
        if isinstance(value, int | float) and name != "epoch"
    ]


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """`training.epochs` -> "10": what is nested by dots, lists as words."""
    flat: dict[str, str] = {}
    for name, value in nested.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            flat[prefix + name] = " ".join(map(str, value))
        else:
            flat[prefix + name] = "" if value is None else str(value)
    return flat
