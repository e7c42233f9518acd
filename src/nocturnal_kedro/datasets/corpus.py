"""The corpus as a folder of plain arrays beside a readable table of people."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from kedro.io import AbstractDataset

from nocturnal_kedro.series.corpus import Corpus

ARRAYS = ("values_TC", "observed_TC", "late_T", "slot_of_day_T", "kernels_2K")


class CorpusDataset(AbstractDataset[Corpus, Corpus]):
    """`filepath` is a folder: one `.npy` per array and `people.csv`."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._folder = Path(filepath)
        self.metadata = metadata

    def load(self) -> Corpus:
        arrays = {name: np.load(self._folder / f"{name}.npy") for name in ARRAYS}
        people = pd.read_csv(
            self._folder / "people.csv",
            dtype={"source": str, "subject": str},
            parse_dates=["start"],
        )
        return Corpus(**arrays, people=people)

    def save(self, data: Corpus) -> None:
        # The new folder is whole before the old one goes: an interrupted save leaves one of them.
        fresh = self._folder.with_name(self._folder.name + ".saving")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name in ARRAYS:
            np.save(fresh / f"{name}.npy", getattr(data, name))
        data.people.to_csv(fresh / "people.csv", index=False)
        old = self._folder.with_name(self._folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self._folder.exists():
            self._folder.rename(old)
        fresh.rename(self._folder)
        shutil.rmtree(old, ignore_errors=True)

    def _exists(self) -> bool:
        return (self._folder / "people.csv").exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}
