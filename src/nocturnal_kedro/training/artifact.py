"""A fitted model or baseline: a value, and the folder that holds it. No pickle."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.calibration import Spread
from nocturnal_kedro.series.scaler import Scaler

DESCRIBED = ("name", "kind", "options", "architecture", "base", "people", "record")
SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Artifact:
    """All that is needed to forecast, and how it came about.

    `state` holds the weights that were trained; those that were not come from `base`, which names
    folder or repository, revision and hash of the checkpoint (None where nothing is taken from
    one).
    """

    name: str
    kind: str  # "model" or "baseline"
    options: dict[str, Any]
    architecture: dict[str, Any]  # of the model; empty for a baseline
    base: dict[str, Any] | None
    scaler: Scaler
    people: tuple[str, ...]  # "source/subject" of everybody whose readings it has learnt from
    state: dict[str, np.ndarray]
    spread: Spread
    record: dict[str, Any]  # corpus fingerprint, seconds, parameters, best epoch, versions
    log: pd.DataFrame  # one row per epoch; empty where nothing was trained


def save_artifact(artifact: Artifact, folder: Path) -> None:
    """Write `folder` whole: built beside it and renamed, so that no half of one is ever seen."""
    from safetensors.numpy import save_file

    fresh = folder.with_name(folder.name + ".saving")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    described = {name: getattr(artifact, name) for name in DESCRIBED}
    described["scaler"] = asdict(artifact.scaler)
    (fresh / "artifact.json").write_text(json.dumps(described, indent=2))
    for name, arrays in (("weights", artifact.state), ("spread", artifact.spread._asdict())):
        ordered = {key: np.asarray(array, order="C") for key, array in arrays.items()}
        save_file(ordered, fresh / f"{name}.safetensors")
    # An empty log keeps its header, so that it loads again.
    log = artifact.log if len(artifact.log.columns) else pd.DataFrame(columns=["epoch"])
    log.to_csv(fresh / "training_log.csv", index=False)
    sums = [f"{sha256(path)}  {path.name}\n" for path in sorted(fresh.iterdir())]
    (fresh / SUMS).write_text("".join(sums))
    fresh.rename(folder)


def load_artifact(folder: Path) -> Artifact:
    """Read what `save_artifact` wrote.

    `InputError` names a file that is absent, has changed, or holds what nobody could forecast with:
    hashes are no proof of who wrote it.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    require_whole(folder)
    try:
        described = json.loads((folder / "artifact.json").read_text())
        fields = {name: described[name] for name in DESCRIBED}
        scaler = Scaler(**described["scaler"])
        scaled_by = np.array([*scaler.mean.values(), *scaler.std.values()], float)
        spread = Spread(**load_file(folder / "spread.safetensors"))
        state = load_file(folder / "weights.safetensors")
    except SafetensorError as error:
        raise InputError(
            f"weights or spread in '{folder}' declare tensors that are not there ({error}). Run "
            f"the training pipeline again, or load another version with --load-versions."
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"'{folder}' was written by another version of the project ({error!r}). Run the "
            f"training pipeline again, or load another version with --load-versions."
        ) from error
    fields["people"] = tuple(fields["people"])
    if fields["kind"] == "model":  # a baseline may know nothing of somebody
        _require_numbers(folder / "weights.safetensors", state)
    _require_numbers(folder / "spread.safetensors", spread._asdict())
    _require_numbers(folder / "artifact.json", {"scaler": scaled_by})
    return Artifact(
        **fields,
        scaler=scaler,
        spread=spread,
        state=state,
        log=pd.read_csv(folder / "training_log.csv"),
    )


def require_whole(folder: Path) -> None:
    """Raise `InputError` unless every file has the hash that it was written with."""
    remedy = "Run the training pipeline again, or load another version with --load-versions."
    try:
        lines = (folder / SUMS).read_text().splitlines()
        listed = [tuple(line.split("  ", 1)) for line in lines]
        names = [name for _, name in listed]
    except (OSError, ValueError) as error:
        raise InputError(f"'{folder}' has no readable {SUMS} ({error}). {remedy}") from error
    for name in ("artifact.json", "weights.safetensors", "spread.safetensors", "training_log.csv"):
        if name not in names:
            raise InputError(f"'{folder / SUMS}' does not list {name}. {remedy}")
    for digest, name in listed:
        file = folder / name
        if file.parent != folder or name == "..":
            raise InputError(f"'{folder / SUMS}' names '{name}', which is outside that folder.")
        if not file.is_file():
            raise InputError(f"'{file}' is missing. {remedy}")
        if sha256(file) != digest:
            raise InputError(
                f"'{file}' is damaged: its SHA-256 is not the one it was written with "
                f"({digest[:12]}). {remedy}"
            )


def _require_numbers(file: Path, arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise InputError(
                f"'{file}': '{name}' holds NaN, and could only forecast NaN. Run the training "
                f"pipeline again."
            )


def sha256(file: Path) -> str:
    """Hash of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
