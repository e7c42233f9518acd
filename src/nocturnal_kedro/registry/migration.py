"""Tiny Time Mixers of script-based repositories become artifacts of this project, or are refused.

A folder is read (`legacy`), its network is told from its configuration and its weights
(`legacy_network`), and what it becomes must forecast what the library's own network forecasts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd
from pydantic import BaseModel, Field, field_validator, model_validator

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError, require_known
from nocturnal_kedro.metrics.calibration import Spread
from nocturnal_kedro.registry.legacy import (
    METADATA,
    NAME,
    Found,
    Legacy,
    find_folders,
    printable,
    read_folder,
)
from nocturnal_kedro.registry.legacy_network import (
    Config,
    read_config,
    read_scaler,
    require_same_forecasts,
    sections,
)
from nocturnal_kedro.registry.models import Registry
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.scaler import GLUCOSE, Scaler
from nocturnal_kedro.training.artifact import Artifact
from nocturnal_kedro.training.trained import Trained
from nocturnal_kedro.versions import versions

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

MODEL = "ttm"
ELSEWHERE = "elsewhere"  # in `learnt_from`: people of no source of this project
MOST_TAGS, MOST_OF_A_TAG, MOST_OF_A_REASON = 50, 500, 500
COLUMNS = (
    "folder", "layout", "dataset", "strategy", "context_steps", "horizon_steps", "parameters",
    "state", "action", "model_id", "difference_mg_dl", "scaler", "learnt_from", "notes", "reason",
    "sha256",
)  # fmt: skip
COUNTS = ("context_steps", "horizon_steps", "parameters")
# What becomes of a folder.
READY, TAKEN, KNOWN, SKIPPED, BROKEN = "ready", "taken over", "unchanged", "skipped", "broken"
OF_NO_DATA = "legacy "  # before the digest that stands for data: no corpus has such a fingerprint
UNCALIBRATED = "its bands are not calibrated until it is evaluated on data here"


class Migration(BaseModel, extra="forbid", frozen=True):
    """How models of script-based repositories are taken over."""

    apply: bool = False  # else nothing is written but the table of what would be done
    name: str = Field(default="legacy", pattern=r"^[A-Za-z0-9][\w.-]*$")  # in the registry
    # Of glucose, for folders that hold no scaler: scaled = (mg/dL - mean) / std.
    scaler_mean_mg_dl: float | None = Field(default=None, ge=0, le=400)
    scaler_std_mg_dl: float | None = Field(default=None, gt=0, le=400)
    # Sources of this project that the models have learnt from, with spaces between them;
    # "elsewhere": none of them. Where nothing is said, no model is ever tested here.
    learnt_from: str = ""
    most_megabytes: int = Field(default=512, ge=1)  # of one file of weights

    @field_validator("learnt_from")
    @classmethod
    def _known_sources(cls, given: str) -> str:
        for name in given.split():
            require_known("source", name, {*plugins.names("source"), ELSEWHERE})
        return given

    @property
    def scaler(self) -> tuple[float, float] | None:
        """Mean and deviation of glucose, where they are given."""
        if self.scaler_mean_mg_dl is None or self.scaler_std_mg_dl is None:
            return None
        return self.scaler_mean_mg_dl, self.scaler_std_mg_dl

    @model_validator(mode="after")
    def _whole_scaler(self) -> Self:
        if (self.scaler_mean_mg_dl is None) != (self.scaler_std_mg_dl is None):
            raise ValueError("give scaler_mean_mg_dl and scaler_std_mg_dl, or neither")
        return self


@dataclass(frozen=True)
class Takeover:
    """A folder that can be taken over, before anything is written."""

    artifact: Artifact
    known: bool  # it was taken over before
    found: Found
    difference_mg_dl: float
    scaler: str  # where it is from
    notes: list[str]
    tags: dict[str, str]


def migrate(
    legacy_root: str, options: Migration, kept: Trained, registry: Registry
) -> pd.DataFrame:
    """One row per folder below `legacy_root`: what it holds, and what was or would be done.

    Without `options.apply` nothing is written. With it, whatever forecasts as it did is kept in
    `kept` and in the registry; the same content again changes nothing. A folder that cannot be
    read is a row with the reason. Raises `InputError` where there is no folder at all.
    """
    if not legacy_root:
        raise InputError('legacy_root is not given: --params="legacy_root=PATH"')
    root = Path(legacy_root)
    rows = []
    for found in find_folders(root):
        row: dict[str, Any] = {"folder": found.name, "layout": found.layout}
        row |= {"dataset": found.dataset, "strategy": found.strategy}
        if found.link_to:
            row |= {"state": SKIPPED, "action": f"a link to {found.link_to}"}
        else:
            try:
                taken = take_over(root, found, options, kept)
            # Whatever a stranger's files bring about is told in their row, and the others go on.
            except Exception as error:
                known = isinstance(error, InputError | OSError)
                reason = str(error) if known else f"unforeseen: {error!r}"
                row |= {"state": BROKEN, "action": "none"}
                row["reason"] = " ".join(printable(reason).split())[:MOST_OF_A_REASON]
            else:
                row |= _describe(taken) | _keep(taken, options, kept, registry)
        rows.append(row)
        logger.info("%s: %s %s", row["folder"], row["state"], row.get("reason", ""))
    texts = [name for name in COLUMNS if name not in (*COUNTS, "difference_mg_dl")]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).fillna(dict.fromkeys(texts, ""))
    return table.astype(dict.fromkeys(COUNTS, "Int64"))


def tell_migration(table: pd.DataFrame) -> str:
    """The table in a few lines: how many of each state, and what of each folder."""
    counts = table["state"].value_counts()
    lines = [", ".join(f"{count} {state}" for state, count in counts.items())]
    for row in table.itertuples():
        lines.append(f"{row.folder}: {row.state}; {row.reason or row.action}")
    if (table["state"] == READY).any():
        lines.append("Nothing was changed. With migration.apply=true it is done.")
    return "\n".join(lines)


def take_over(root: Path, found: Found, options: Migration, kept: Trained) -> Takeover:
    """What a folder becomes; raises `InputError` where it cannot be read or forecasts otherwise.

    What was taken over before is what it was then.
    """
    if found.fault:
        raise InputError(found.fault)
    legacy = read_folder(root, found, options.most_megabytes * 2**20)
    found = _named(found, legacy)
    config, assumed = read_config(legacy)
    scaler, told_by = read_scaler(legacy, config, options.scaler)
    learnt_from = _sources(found, options)
    origin = {
        "layout": found.layout,
        "dataset": found.dataset,
        "strategy": found.strategy,
        "files": legacy.files,
        "scaler": told_by,
        "learnt_from": learnt_from,
    }
    described = {**origin, "mean": scaler.mean[GLUCOSE], "std": scaler.std[GLUCOSE]}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    artifact = kept.find(digest[:20])
    known = artifact is not None
    if artifact is None:
        artifact = _artifact(found, legacy, config, scaler, learnt_from, origin, digest)
    difference = require_same_forecasts(legacy, config, artifact)
    notes = [*legacy.notes, *assumed]
    return Takeover(artifact, known, found, difference, told_by, notes, _tags(found, legacy))


def _describe(taken: Takeover) -> dict[str, Any]:
    record = taken.artifact.record
    sources = record["learnt_from"]
    return {
        "dataset": taken.found.dataset,
        "strategy": taken.found.strategy,
        "context_steps": record["task"]["context_steps"],
        "horizon_steps": record["task"]["horizon_steps"],
        "parameters": record["parameters"],
        "difference_mg_dl": taken.difference_mg_dl,
        "scaler": taken.scaler,
        "learnt_from": "unknown: is tested on nothing here"
        if sources is None
        else " ".join(row["source"] for row in sources) or ELSEWHERE,
        "notes": "; ".join([*taken.notes, UNCALIBRATED]),
        "sha256": record["data"].removeprefix(OF_NO_DATA),
    }


def _keep(taken: Takeover, options: Migration, kept: Trained, registry: Registry) -> dict[str, Any]:
    """Write and register it, if that was asked for; what was done or would be."""
    key = taken.artifact.record["key"]
    if not options.apply:
        if taken.known:
            return {"state": KNOWN, "action": f"none: it is kept as {key}"}
        return {"state": READY, "action": f"would be converted and registered as '{options.name}'"}
    if not taken.known:
        kept.keep(key, taken.artifact)
        if kept.find(key) is None:
            raise InputError("the project's code was changed since this run began; run it again")
    folder = kept.folder_of(key)
    model_id = registry.register_model(folder, options.name, tags=taken.tags)
    told = {"model_id": model_id}
    if taken.known:
        return told | {"state": KNOWN, "action": f"none: it is {model_id}"}
    return told | {"state": TAKEN, "action": f"converted and registered as {model_id}"}


def _named(found: Found, legacy: Legacy) -> Found:
    """With data set and strategy from the metadata, where the folder's name does not tell them."""
    told = legacy.texts.get(METADATA, {})
    dataset, strategy = (
        getattr(found, name) or (value if NAME.fullmatch(value) else "")
        for name in ("dataset", "strategy")
        for value in (str(told.get(name, "")),)
    )
    return replace(found, dataset=dataset, strategy=strategy)


def _sources(found: Found, options: Migration) -> list[str] | None:
    """The sources that it has learnt from, by the folder's name and by who takes it over."""
    if not options.learnt_from:
        return None
    named = {name for name in options.learnt_from.split() if name != ELSEWHERE}
    own = {found.dataset} & set(plugins.names("source"))
    return sorted(named | own)


def _artifact(
    found: Found,
    legacy: Legacy,
    config: Config,
    scaler: Scaler,
    learnt_from: list[str] | None,
    origin: dict[str, Any],
    digest: str,
) -> Artifact:
    strategy = _strategy(found.strategy)
    options: dict[str, Any] = {"strategy": strategy, "covariates": []}
    if strategy == "from_scratch":
        options["network"] = {
            "patch_length": config.patch_length,
            "d_model": config.d_model,
            "layers": config.num_layers,
            "decoder_d_model": config.decoder_d_model,
            "decoder_layers": config.decoder_num_layers,
            "adaptive_patching_levels": config.adaptive_patching_levels,
            "dropout": config.dropout,
        }
    else:
        options["weights"] = f"legacy/{found.name}"
    whole = None if learnt_from is None else [_all_of(source) for source in learnt_from]
    return Artifact(
        name=MODEL,
        kind="model",
        options=plugins.options("model", MODEL, options).model_dump(mode="json"),
        architecture=config.model_dump()
        | {
            "num_input_channels": 1,
            "prediction_channel_indices": [0],
            "exogenous_channel_indices": [],
            "loss": None,
            "forecasts_change": False,
        },
        base=None,
        scaler=scaler,
        people=(),
        state={f"network.{n}": w.numpy() for n, w in _as_loaded(legacy.state).items()},
        spread=Spread.none(config.horizon),
        record={
            "key": digest[:20],
            "data": f"{OF_NO_DATA}{digest}",
            "learnt_from": whole,
            "calibrated": False,
            "made_ready_by": {"grid": {}, "physiology": {}},  # it sees glucose alone
            "task": Task(
                context_steps=config.context_length, horizon_steps=config.horizon
            ).model_dump(),
            "versions": versions(),
            "parameters": sum(
                weight.numel()
                for name, weight in legacy.state.items()
                if weight.is_floating_point() and ".running_" not in name
            ),
            "trained_parameters": None,
            "windows": None,
            "best_epoch": None,
            "train_seconds": None,
            "legacy": origin | {"folder": found.name, "texts": legacy.texts},
        },
        log=legacy.log,
    )


def _all_of(source: str) -> dict[str, str | None]:
    """In place of a person's days: anybody's of the source, at any time."""
    return {"source": source, "subject": None, "start": None, "end": None}


def _as_loaded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """float32, as the library holds them once they are loaded."""
    return {name: w.float() if w.is_floating_point() else w for name, w in state.items()}


def _strategy(told: str) -> str:
    plain = told.lower().replace("_", "")
    if "scratch" in plain:
        return "from_scratch"
    return "fine_tune" if "finetun" in plain else "zero_shot"  # as they are: no more is known


def _tags(found: Found, legacy: Legacy) -> dict[str, str]:
    """The folder and its old metadata, as the registry keeps them beside a version."""
    own = {"legacy.folder": found.name, "nocturnal.calibrated": "false"}
    for name in ("timestamp", "dataset", "strategy"):
        own[f"legacy.{name}"] = getattr(found, name)
    told = {
        ".".join(["legacy", *path, key]): printable(value)[:MOST_OF_A_TAG]
        for path, section in sections(legacy.texts.get(METADATA, {}))
        for key, value in section.items()
        if not isinstance(value, dict | list) and value is not None
    }
    allowed = {re.sub(r"[^\w./ -]", "_", name, flags=re.ASCII)[:200]: v for name, v in told.items()}
    return dict(list((allowed | own).items())[-MOST_TAGS:])
