"""What every model of a comparison is trained and tested on, held together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nocturnal_kedro.series.corpus import Corpus, read_corpus, write_corpus
from nocturnal_kedro.series.origins import (
    Task,
    anchor_rows,
    data_fingerprint,
    eligible_rows,
    origin_rows,
    require_frozen,
)
from nocturnal_kedro.series.scaler import Scaler
from nocturnal_kedro.series.schema import LOW_MG_DL, STEPS_PER_HOUR
from nocturnal_kedro.series.windows import Channels, WindowGatherer
from nocturnal_kedro.training.device import TORCH_NAME, require_device
from nocturnal_kedro.training.options import Training
from nocturnal_kedro.training.sampler import Sampler


@dataclass(frozen=True)
class Data:
    """A corpus, who and when of it is for what, and the question asked of it."""

    corpus: Corpus
    splits: pd.DataFrame
    origins: pd.DataFrame
    task: Task

    def require_frozen(self) -> None:
        """Raise `InputError` unless the origins are those of corpus, splits and task."""
        require_frozen(self.corpus, self.splits, self.origins, self.task)

    def fingerprint(self) -> str:
        """SHA-256 of readings, splits and origins."""
        return data_fingerprint(self.corpus, self.splits, self.origins)

    def made_ready_by(self) -> dict[str, Any]:
        """The options that readings became a corpus by: other people's need the same."""
        parts = list(self.corpus.made_from.get("parts", {}).values())
        return {
            "grid": parts[0]["grid"] if parts else {},  # of all parts the same
            "physiology": self.corpus.made_from.get("physiology", {}),
        }

    def night_rows(self, split: str) -> np.ndarray:
        """Rows of the corpus that are the frozen origins of a split (int64)."""
        return origin_rows(self.corpus, self.origins[self.origins["split"] == split])

    def rows_around_anchor(self, hours: float | None = None) -> np.ndarray:
        """Every row whose training window may be used, `hours` from an anchor at most (int64).

        From one of the same person, eligible or not; None: as many hours as the task's usual.
        """
        rows = eligible_rows(self.corpus, self.splits, self.task, "train")
        steps = (self.task.usual_anchor_hours if hours is None else hours) * STEPS_PER_HOUR
        anchored = anchor_rows(self.corpus, self.task)
        if not len(anchored):
            return anchored
        after = np.searchsorted(anchored, rows)
        person = self.corpus.person_of(rows)
        near = np.zeros(len(rows), bool)
        for at in (after - 1, after):  # the nearest on either side
            other = anchored[at.clip(0, len(anchored) - 1)]
            near |= (np.abs(rows - other) <= steps) & (self.corpus.person_of(other) == person)
        return rows[near]

    def write(self, folder: Path) -> None:
        """Into a folder, for the processes that train together."""
        write_corpus(self.corpus, folder / "corpus")
        self.splits.to_parquet(folder / "splits.parquet")
        self.origins.to_parquet(folder / "origins.parquet")

    @classmethod
    def read(cls, folder: Path, task: Task) -> Data:
        """What `write` wrote."""
        return cls(
            read_corpus(folder / "corpus"),
            pd.read_parquet(folder / "splits.parquet"),
            pd.read_parquet(folder / "origins.parquet"),
            task,
        )

    def sampler(self, rows: np.ndarray, training: Training) -> Sampler:
        """Training windows at `rows`, drawn fairly: see `Sampler`."""
        corpus = self.corpus
        person = corpus.person_of(rows)
        source = pd.factorize(corpus.people["source"])[0]
        low_T = corpus.observed_TC[:, 0] & (corpus.values_TC[:, 0] < LOW_MG_DL)
        before_T = np.append(0, np.cumsum(low_T))  # how many are low before each row
        end = np.minimum(
            rows + 1 + self.task.horizon_steps, corpus.people["last"].to_numpy()[person]
        )
        ends_low = before_T[end] > before_T[rows + 1]
        return Sampler(rows, training, person, source[person], ends_low)

    def gatherer(self, scaler: Scaler, channels: Channels, device: str = "cpu") -> WindowGatherer:
        """Windows on a device; `InputError` where it is absent."""
        require_device(device)
        return WindowGatherer(
            self.corpus, self.splits, scaler, self.task, channels, TORCH_NAME[device]
        )

    def trained_people(self) -> tuple[str, ...]:
        """'source/subject' of everybody with a training segment."""
        return _names(self.splits[self.splits["split"] == "train"])


def _names(rows: pd.DataFrame) -> tuple[str, ...]:
    return tuple(sorted(set(rows["source"] + "/" + rows["subject"])))
