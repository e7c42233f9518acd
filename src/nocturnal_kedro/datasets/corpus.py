"""The corpus as a versioned folder of plain arrays beside a readable table of people."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from kedro.io import AbstractVersionedDataset, Version
from kedro.io.core import DatasetError

from nocturnal_kedro.series.corpus import Corpus

ARRAYS = ("values_TC", "observed_TC", "late_T", "covered_T", "slot_of_day_T", "kernels_4K")


class CorpusDataset(AbstractVersionedDataset[Corpus, Corpus]):
    """`filepath` is a folder: one `.npy` per array, `people.csv` and `made_from.json`.

    An unchanged corpus is not written again: its new version shares the files of the last one.
    """

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(PurePosixPath(filepath), version)
        self.metadata = metadata

    def load(self) -> Corpus:
        folder = Path(self._get_load_path())
        try:
            arrays = {name: np.load(folder / f"{name}.npy") for name in ARRAYS}
            described = json.loads((folder / "made_from.json").read_text())
            people = pd.read_csv(
                folder / "people.csv",
                dtype={"source": str, "subject": str},
                parse_dates=["start"],
                keep_default_na=False,
            )
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise DatasetError(
                f"corpus '{folder}' is incomplete or damaged ({error}). Run data_processing "
                f"again, or load another version with --load-versions."
            ) from error
        return Corpus(**arrays, people=people, made_from=described["made_from"])

    def save(self, data: Corpus) -> None:
        folder = Path(self._get_save_path())
        fresh = folder.with_name(folder.name + ".saving")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name in ARRAYS:
            array, file = getattr(data, name), fresh / f"{name}.npy"
            if not _share(self._newest(f"{name}.npy"), file, array):
                np.save(file, array)
        data.people.to_csv(fresh / "people.csv", index=False)
        described = {"fingerprint": data.fingerprint, "made_from": data.made_from}
        (fresh / "made_from.json").write_text(json.dumps(described, indent=2))
        fresh.rename(folder)

    def _newest(self, name: str) -> Path | None:
        """A file of the last version, if there is one."""
        return max(Path(self._filepath).glob(f"*/{self._filepath.name}/{name}"), default=None)

    def _exists(self) -> bool:
        try:
            return (Path(self._get_load_path()) / "made_from.json").exists()
        except DatasetError:  # no version has been saved yet
            return False

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}


def _share(last: Path | None, file: Path, array: np.ndarray) -> bool:
    """Whether `file` could be made a second name of the last version's, which holds the same."""
    if last is None:
        return False
    try:
        if not np.array_equal(np.load(last, mmap_mode="r"), array):
            return False
        os.link(last, file)
    except (OSError, EOFError, ValueError):  # it is damaged, or the disk has no second names
        return False
    return True
