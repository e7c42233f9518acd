"""Every score saved below `data_root`, of every experiment, model, sweep and version."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
from kedro.io import AbstractDataset, DatasetError

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.forecasts import PERSON
from nocturnal_kedro.metrics.overview import COLUMNS, SEVERAL, newest
from nocturnal_kedro.metrics.scores import pool

OF_MODELS, OF_SWEEPS = "*_night_scores.parquet", "cell_scores.parquet"
VERSIONS = ("newest", "all")
READINGS = ["origin", "points", "reference_mg_dl"]  # of a night, as it was scored
NEEDED = ("model", "data", "split", *PERSON, *READINGS, "mse", "mae_mg_dl", "crps_mg_dl")
OF_CELLS = ("question", "cell")


class SavedScoresDataset(AbstractDataset[NoReturn, pd.DataFrame]):
    """Loads one row per person and split, of each model and training seed; read-only.

    Columns: `metrics.overview.COLUMNS`; a person's errors are means over the points of their
    nights. `path` is the folder of model outputs, one folder per experiment; `versions` is
    "newest", of each model and of each sweep, or "all". Raises `InputError` where nothing is saved,
    and on a file that is damaged or lacks a column or a value.
    """

    def __init__(
        self, *, path: str, versions: str = "newest", metadata: dict[str, Any] | None = None
    ) -> None:
        if versions not in VERSIONS:
            raise InputError(f"versions is {versions!r}; it is one of {', '.join(VERSIONS)}.")
        self._path, self._versions = Path(path), versions
        self.metadata = metadata

    def load(self) -> pd.DataFrame:
        files = [
            file
            for kind in (OF_MODELS, OF_SWEEPS)
            for saved in sorted(self._path.glob(f"*/{kind}"))
            for file in self._of_versions(saved)
        ]
        if not files:
            raise InputError(
                f"no scores are saved in {self._path}. Run an experiment first, e.g. "
                f"`kedro run --pipelines=nocturnal_point` with the same --params, or give the "
                f"data_root of one that was run."
            )
        people = pd.concat([people_of(file) for file in files], ignore_index=True)
        return newest(people) if self._versions == "newest" else people

    def save(self, data: NoReturn) -> NoReturn:
        raise DatasetError("saved scores are read, never written")

    def _of_versions(self, saved: Path) -> list[Path]:
        files = sorted(saved.glob(f"*/{saved.name}"))
        return files[-1:] if self._versions == "newest" else files

    def _exists(self) -> bool:
        return True  # that nothing is saved is told on loading

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path), "versions": self._versions}


def people_of(file: Path) -> pd.DataFrame:
    """The scores of one file, EXPERIMENT/NAME/VERSION/NAME, as `SavedScoresDataset` has them."""
    nights = _read(file)
    # What does not say its training seed is of one, 0, as in metrics.compare.
    nights["seed"] = nights["seed"].fillna(0).astype(int) if "seed" in nights else 0
    if "cell" in nights:
        nights["cell"] = nights["question"] + ": " + nights["cell"]
        data = nights.groupby(["model", "cell"])["data"]
        nights["data"] = nights["data"].where(data.transform("nunique") == 1, SEVERAL)
    else:
        nights["cell"] = ""
    person = ["model", "cell", "seed", "data", "split", *PERSON]
    # 40 bits of each: the sum, in whatever order, is exact where a float holds it.
    scored_on = pd.util.hash_pandas_object(nights[READINGS].round(3), index=False) // 2**24
    by_person = nights.assign(scored_on=scored_on.astype("int64")).groupby(person)["scored_on"]
    told = by_person.agg(nights="size", scored_on="sum").reset_index()
    people = pool(nights, person).merge(told, on=person, validate="one_to_one")
    return people.assign(experiment=file.parents[2].name, version=file.parent.name)[list(COLUMNS)]


def _read(file: Path) -> pd.DataFrame:
    """The columns needed of each night; `InputError` names the file and what is wrong with it."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    needed = [*NEEDED, *(OF_CELLS if file.name == OF_SWEEPS else ())]
    remedy = (
        f"Run experiment '{file.parents[2].name}' again from its evaluation on, and delete the "
        f"folder {file.parent}."
    )
    try:
        with ParquetFile(file) as saved:
            there = saved.schema_arrow.names
            if lacking := [name for name in needed if name not in there]:
                raise InputError(
                    f"the scores in {file} lack {', '.join(lacking)}: they were made by another "
                    f"version. {remedy}"
                )
            wanted = [*needed, *(["seed"] if "seed" in there else [])]
            nights = saved.read(columns=wanted).to_pandas()
    except (ArrowException, OSError) as error:
        [told, *_] = str(error).splitlines()
        raise InputError(f"the scores in {file} are damaged ({told}). {remedy}") from error
    empty = [name for name in needed if nights[name].isna().any()]
    if empty or nights.empty:
        what = f"no value of {', '.join(empty)} in some night" if empty else "no night"
        raise InputError(f"the scores in {file} hold {what}. {remedy}")
    return nights
