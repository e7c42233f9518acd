"""What of earlier runs may go: first a list of what would be freed, and then it is done."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.registry.run_folder import (
    DETAILS,
    RUNS,
    read_metadata,
    read_people,
    run_folders,
)

TRAINED = "06_models/trained"
LAYERS = ("03_primary", "05_model_input", "06_models", "07_model_output", "08_reporting")
VERSION = re.compile(r"\d{4}-\d\d-\d\dT\d\d\.\d\d\.\d\d\.\d{3}Z")  # as Kedro calls them
HALF_WRITTEN = re.compile(r"[0-9a-f]{20}\..+")  # of a run that was killed while it kept a model
ABANDONED_S = 24 * 3600
COLUMNS = ("path", "what", "bytes")


def plan_cleanup(
    data_root: Path,
    keep: int,
    registered: Iterable[str],
    waiting: Iterable[Path] = (),
    days: float = 7,
) -> pd.DataFrame:
    """What would go: one row for each folder, with the bytes that this one frees.

    Of each experiment the `keep` newest runs stay, and the one whose best model validation prefers,
    and those of `waiting`, which the store does not have; of each dataset the `keep` newest
    versions and those of the runs that stay; every training that one of these runs, a sweep that
    stays or the registry cites (`registered` are keys of artifacts); what adapters stand on; and
    whatever is younger than `days`, as of a run that goes on. The store itself is never touched.
    Columns: path, what, bytes. Raises `InputError` where no run would stay.
    """
    if keep < 1:
        raise InputError(f"keep is {keep}: at least the newest run of each experiment stays.")
    runs = {folder: read_metadata(folder) for folder in run_folders(data_root / RUNS)}
    kept = _kept(runs, keep) | set(waiting)
    going = [(folder, "run") for folder in runs if folder not in kept]
    versions, keys = set(), set(registered)
    for folder in kept:
        versions |= {*runs[folder]["datasets"].values(), *runs[folder]["stages"].values()}
        keys |= {key for model in runs[folder]["models"].values() for key in model["keys"]}
    going += [(folder, "version") for folder in _old_versions(data_root, keep, versions)]
    keys |= _of_sweeps(data_root, {folder for folder, _ in going})
    going += [(folder, "training") for folder in _uncited(data_root, keys)]
    bases = _bases(data_root)
    youngest = time.time() - days * 24 * 3600
    going = [
        (folder, what)
        for folder, what in going
        if folder.stat().st_mtime <= youngest
        and not any(folder == base or folder in base.parents for base in bases)
    ]
    freed = _freed([folder for folder, _ in going])
    rows = [(folder, what, freed[folder]) for folder, what in going]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def clean(plan: pd.DataFrame) -> int:
    """Delete what a plan lists; returns the bytes that are free now."""
    for folder in plan["path"]:
        shutil.rmtree(folder)
    return int(plan["bytes"].sum())


def _kept(runs: dict[Path, dict[str, Any]], keep: int) -> set[Path]:
    """The newest runs of each experiment, and of each experiment and data the best."""
    kept: set[Path] = set()
    best: dict[tuple[str, str], tuple[float, Path]] = {}
    of_experiment: dict[str, list[Path]] = {}
    for folder, metadata in runs.items():  # the oldest first
        of_experiment.setdefault(metadata["experiment"], []).append(folder)
        error = _best_error(folder)
        key = metadata["experiment"], metadata["data"]
        if error is not None and error <= best.get(key, (float("inf"), folder))[0]:
            best[key] = error, folder
    for folders in of_experiment.values():
        kept |= set(folders[-keep:])
    return kept | {folder for _, folder in best.values()}


def _best_error(folder: Path) -> float | None:
    """RMSE on validation of the run's best model, each person counting once."""
    people = read_people(folder / DETAILS)
    judged = people[people["split"] == "validation"]
    if judged.empty:
        return None
    return float(judged.groupby(["model", "cell", "seed"])["rmse_mg_dl"].mean().min())


def _old_versions(data_root: Path, keep: int, wanted: set[str]) -> Iterator[Path]:
    """Versions of datasets that are neither among the newest nor of a run that stays."""
    for layer in LAYERS:
        by_dataset: dict[Path, list[Path]] = {}
        for folder in sorted(_versions(data_root / layer)):
            by_dataset.setdefault(folder.parent, []).append(folder)
        for folders in by_dataset.values():
            yield from (folder for folder in folders[:-keep] if folder.name not in wanted)


def _versions(folder: Path) -> Iterator[Path]:
    """Folders of versions below, none inside another; what is shared by all runs has none."""
    if not folder.is_dir() or folder.as_posix().endswith(TRAINED):
        return
    for below in folder.iterdir():
        if VERSION.fullmatch(below.name):
            yield below
        elif below.is_dir() and not below.is_symlink():
            yield from _versions(below)


def _of_sweeps(data_root: Path, going: set[Path]) -> set[str]:
    """Trainings of sweeps that stay, whether or not they have a report yet."""
    keys: set[str] = set()
    for file in data_root.glob("06_models/*/cells.json/*/cells.json"):
        if file.parent not in going:
            for cell in json.loads(file.read_text()):
                keys |= {cell["key"], cell["start"]} - {None}
    return keys


def _bases(data_root: Path) -> set[Path]:
    """Folders that an artifact takes a part of its weights from."""
    found = set()
    for file in (data_root / "06_models").rglob("artifact.json"):
        base = json.loads(file.read_text())["base"] or {}
        found |= {Path(value).resolve() for value in base.values() if "/" in str(value)}
    return found


def _uncited(data_root: Path, keys: set[str]) -> Iterator[Path]:
    """Trainings that nothing cites, and what a killed run left of one a day ago or earlier."""
    for folder in sorted((data_root / TRAINED).glob("*")):
        if HALF_WRITTEN.fullmatch(folder.name):
            if time.time() - folder.stat().st_mtime > ABANDONED_S:
                yield folder
        elif folder.is_dir() and folder.name not in keys:
            yield folder


def _freed(folders: list[Path]) -> dict[Path, int]:
    """Bytes that go with each folder: a file with links elsewhere goes with the last of them."""
    linked: Counter[tuple[int, int]] = Counter()
    freed: dict[Path, int] = {}
    for folder in folders:
        freed[folder] = 0
        for top, _, names in os.walk(folder):
            for name in names:
                told = (Path(top) / name).lstat()
                linked[told.st_dev, told.st_ino] += 1
                if linked[told.st_dev, told.st_ino] == told.st_nlink:
                    freed[folder] += told.st_size
    return freed
