"""The prepared parts of the sources, each made once for what it is made from."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from kedro.io import AbstractDataset

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import join_series, with_same_categories
from nocturnal_kedro.series.preparation import Prepared

logger = logging.getLogger(__name__)

Makers = dict[str, Callable[[], Prepared]]


class PreparedDataset(AbstractDataset[Makers, Prepared]):
    """`filepath` is a folder of one folder per part, named by the digest of what it is made from.

    Saves {digest: how to make the part}: only parts that are not there are made, on Dask's
    scheduler of the moment, and each is written by the worker that made it. `current.json` lists
    the parts of the newest run, which `load` joins.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._folder = Path(filepath)
        self.metadata = metadata

    def save(self, data: Makers) -> None:
        import dask

        self._folder.mkdir(parents=True, exist_ok=True)
        absent = self.absent(data)
        logger.info("%d of %d parts are unchanged", len(data) - len(absent), len(data))
        make_and_write = dask.delayed(_make_and_write, pure=False)
        dask.compute(*(make_and_write(self._part(digest), make) for digest, make in absent.items()))
        fresh = self._folder / "current.json.saving"
        fresh.write_text(json.dumps(list(data)))
        fresh.rename(self._folder / "current.json")

    def absent(self, data: Makers) -> Makers:
        """Those parts that are not there yet."""
        return {digest: make for digest, make in data.items() if not self._part(digest).exists()}

    def load(self) -> Prepared:
        digests = json.loads((self._folder / "current.json").read_text())
        parts = [_read(self._part(digest)) for digest in digests]
        marks = [part.marks for part in parts if len(part.marks)]
        return Prepared(
            series=join_series([part.series for part in parts]),
            tally=pd.concat([part.tally for part in parts], ignore_index=True),
            marks=pd.concat(with_same_categories(marks)) if marks else parts[0].marks,
            made_from={digest: part.made_from for digest, part in zip(digests, parts, strict=True)},
        )

    def _part(self, digest: str) -> Path:
        return self._folder / digest[:32]  # half of it is enough, and fits a file manager

    def _exists(self) -> bool:
        return (self._folder / "current.json").exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}


def _make_and_write(folder: Path, make: Callable[[], Prepared]) -> None:
    """On a worker; where one is lost while writing, another makes and writes the part again."""
    prepared = make()
    fresh = folder.with_name(f"{folder.name}.{os.uname().nodename}.{os.getpid()}.saving")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    prepared.series.to_parquet(fresh / "series.parquet", index=False)
    prepared.marks.to_parquet(fresh / "marks.parquet", index=False)
    prepared.tally.to_csv(fresh / "tally.csv", index=False)
    (fresh / "made_from.json").write_text(json.dumps(prepared.made_from, indent=2))
    try:
        fresh.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(fresh)  # another worker was taken for lost, and was not


def _read(folder: Path) -> Prepared:
    try:
        return Prepared(
            series=pd.read_parquet(folder / "series.parquet"),
            tally=pd.read_csv(folder / "tally.csv", dtype={"subject": str}, keep_default_na=False),
            marks=pd.read_parquet(folder / "marks.parquet"),
            made_from=json.loads((folder / "made_from.json").read_text()),
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"the prepared part '{folder}' is damaged ({error}). Delete that folder and run "
            f"data_processing again: it is made anew from the raw files."
        ) from error
