"""A cell of a sweep: one variant of a model or baseline, trained once, on frozen test nights.

What cells have in common is made once: the corpus, and any training that two of them share.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.calibration import Spread
from nocturnal_kedro.metrics.events import LOWS, foresee_lows, low_events
from nocturnal_kedro.metrics.forecasts import NIGHT, lay_out
from nocturnal_kedro.metrics.scores import score_points
from nocturnal_kedro.metrics.sweeps import BASELINES
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.series.origins import Task, build_origins, origin_rows
from nocturnal_kedro.series.schema import STEPS_PER_HOUR
from nocturnal_kedro.series.splits import SplitOptions
from nocturnal_kedro.training.artifact import Artifact
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import (
    Kept,
    fit_baseline,
    fit_model,
    require_apart,
)
from nocturnal_kedro.training.forecast import forecast_origins
from nocturnal_kedro.training.options import Hardware, Training
from nocturnal_kedro.training.trained import key_of

logger = logging.getLogger(__name__)

KEYS = ("key", "start")  # of the artifacts that were made: see `Bench.train_all`
NEVER_LOW_MG_DL = 1e4  # in place of the quantiles of steps that are left out
Forecasted = MutableMapping[str, bytes]  # forecasts as Parquet, by model and origins


@dataclass(frozen=True)
class Cell:
    """What is trained, on what, and where it stands in the tables of the sweep."""

    question: str  # what is varied
    name: str  # of the variant, among those of the question
    model: str
    data: Data  # that it learns from
    training: Training
    given: dict[str, Any] = field(default_factory=dict)  # the model's options
    number: float = np.nan  # place on an axis
    against: str = ""  # the variant that it is compared with
    seed: int | None = None  # None: of a baseline
    start: Cell | None = None  # whose weights it starts from
    zero_shot: bool = False  # it is `start`, as it is
    tested: Data | None = None  # where that is other data
    tested_people: frozenset[str] | None = None  # "source/subject"; None: everybody
    # Whose validation nights its bands come from: its own training's, or that of its start.
    bands: Literal["own", "start"] = "own"
    clock: tuple[int, int] | None = None  # hours: it is scored by readings from, until

    @property
    def labels(self) -> dict[str, Any]:
        """What a row of its scores begins with."""
        return {
            "question": self.question,
            "cell": self.name,
            "number": self.number,
            "against": self.against,
            "model": self.model,
            "seed": np.nan if self.seed is None else float(self.seed),
        }

    @property
    def identity(self) -> dict[str, Any]:
        """The same, as JSON can hold it, without where it stands."""
        return {
            "question": self.question,
            "cell": self.name,
            "model": self.model,
            "seed": self.seed,
            "learns_from": self.data.fingerprint(),
            "tested_on": self.on_test.fingerprint(),
            "options": json.loads(json.dumps(self.given)),  # as they come back from a file
            "training": self.training.model_dump(mode="json"),
            "starts_from": self.start and self.start.identity,
            "bands": self.bands,
        }

    def __str__(self) -> str:
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"'{self.name}' of '{self.question}', {self.model}{seed}"

    @property
    def on_test(self) -> Data:
        """The data whose test nights it forecasts."""
        return self.tested or self.data


@dataclass(frozen=True)
class Grounds:
    """What all cells of a sweep start from."""

    data: Data
    cut: SplitOptions  # how the splits were cut
    training: Training
    models: dict[str, dict[str, Any]]  # options given, by name
    baselines: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]

    def each_model(self) -> Iterator[tuple[str, dict[str, Any], int, Training]]:
        """Every model with every seed: name, options, seed, training.

        Raises `InputError` on a model of which nothing is trained here.
        """
        for seed in self.seeds or (self.training.seed,):
            for name, given in self.models.items():
                if plugins.is_service(name):
                    raise InputError(
                        f"model '{name}' is a service, of which nothing is trained here, so that "
                        f"it has no variants. Leave it out of 'models'."
                    )
                yield name, given, seed, self.training.with_seed(seed)

    def baseline_cells(self, tested: Data | None = None) -> list[Cell]:
        """Every baseline, as fitted to all there is to learn from."""
        return [
            Cell(BASELINES, name, name, self.data, self.training, given, tested=tested)
            for name, given in self.baselines.items()
        ]

    @cached_property
    def people(self) -> pd.Series:
        """'source/subject' of everybody in the corpus, in its order."""
        return self.data.corpus.people["source"] + "/" + self.data.corpus.people["subject"]


def vary(
    data: Data,
    *,
    corpus: Corpus | None = None,
    splits: pd.DataFrame | None = None,
    task: Task | None = None,
) -> Data:
    """The data with another corpus, splits or task, and the origins that follow from them.

    Raises `InputError` where no test night is left.
    """
    corpus = data.corpus if corpus is None else corpus
    splits = data.splits if splits is None else splits
    task = data.task if task is None else task
    return Data(corpus, splits, build_origins(corpus, splits, task)[0], task)


class Bench:
    """Where cells are trained and forecast, and what is kept of them from run to run."""

    def __init__(
        self, hardware: Hardware, kept: Kept, forecasted: Forecasted | None = None
    ) -> None:
        if kept.trained is None:
            raise ValueError("a sweep keeps its trainings: Kept(trained=...)")
        self.hardware, self.kept = hardware, kept
        self.forecasted: Forecasted = {} if forecasted is None else forecasted
        self._trained = kept.trained
        self._starts: dict[int, Artifact] = {}

    def train_all(self, cells: list[Cell]) -> list[dict[str, Any]]:
        """Train what is not kept yet; returns what each cell is, and the keys of its artifact and,
        where it starts from another, of that.
        """
        made = []
        for place, cell in enumerate(cells, 1):
            logger.info("training cell %d of %d: %s", place, len(cells), cell)
            start = self._start(cell.start).record["key"] if cell.start else None
            made.append(cell.identity | {"key": self.train(cell).record["key"], "start": start})
        return made

    def score_all(
        self, cells: list[Cell], made: list[dict[str, Any]], corpus: Corpus
    ) -> pd.DataFrame:
        """Scores by night of all cells, by the readings of `corpus`; `made` is of `train_all`.

        Raises `InputError` where other cells were trained, or an artifact is not there any more.
        """
        trained = [{n: v for n, v in of_it.items() if n not in KEYS} for of_it in made]
        if trained != [cell.identity for cell in cells]:
            raise InputError(
                f"{len(made)} cells were trained, and these parameters give {len(cells)}, or "
                f"others. Run training again, whole, with the same --params."
            )
        tables = []
        for place, (cell, of_it) in enumerate(zip(cells, made, strict=True), 1):
            logger.info("scoring cell %d of %d: %s", place, len(cells), cell)
            artifact = self._kept(cell, of_it["key"])
            if cell.bands == "start" and cell.start and id(cell.start) not in self._starts:
                start = self._kept(cell, of_it["start"])
                self._starts[id(cell.start)] = replace(start, state={})  # its bands are asked for
            spread = self._spread(cell, artifact)
            tables.append(score(cell, self.forecast(cell, artifact), spread, corpus))
        return pd.concat(tables, ignore_index=True)

    def train(self, cell: Cell) -> Artifact:
        """The cell's artifact: trained now, or found where it was kept."""
        if cell.model in plugins.names("baseline"):
            return fit_baseline(cell.model, cell.given, cell.data, cell.training, self._trained)
        if cell.start is None:
            return fit_model(
                cell.model, cell.given, cell.data, cell.training, self.hardware, self.kept
            )
        start = self._start(cell.start)
        if cell.zero_shot:
            return start
        weights = str(self._trained.folder_of(start.record["key"]).resolve())
        given = cell.given | {"strategy": "fine_tune", "weights": weights}
        return fit_model(cell.model, given, cell.data, cell.training, self.hardware, self.kept)

    def forecast(self, cell: Cell, artifact: Artifact) -> pd.DataFrame:
        """Forecasts of its validation and test nights, made now or found where they were kept.

        Raises `InputError` where it has learnt from time that it is tested on.
        """
        data = cell.on_test
        require_apart(artifact, data)
        asked = {"trained": artifact.record["key"], "data": data.fingerprint()}
        bands = self._start(cell.start) if cell.bands == "start" and cell.start else artifact
        asked |= {"task": data.task.model_dump(), "bands": bands.record["key"]}
        key = key_of(artifact.kind, artifact.name, asked)
        if key in self.forecasted:
            return pd.read_parquet(io.BytesIO(self.forecasted[key]))
        artifact = replace(artifact, spread=bands.spread)
        frame, _ = forecast_origins(artifact, data, self.hardware.device)
        written = io.BytesIO()
        frame.to_parquet(written, index=False)
        self.forecasted[key] = written.getvalue()
        return frame

    def _kept(self, cell: Cell, key: str) -> Artifact:
        artifact = self._trained.find(key)
        if artifact is None:
            raise InputError(
                f"the model of {cell} is not in '{self._trained.root}' any more. Run training "
                f"again."
            )
        return artifact

    def _spread(self, cell: Cell, artifact: Artifact) -> Spread:
        if cell.bands == "start" and cell.start:
            return self._start(cell.start).spread
        return artifact.spread

    def _start(self, cell: Cell) -> Artifact:
        if id(cell) not in self._starts:
            self._starts[id(cell)] = self.train(cell)
        return self._starts[id(cell)]


def score(cell: Cell, forecasts: pd.DataFrame, spread: Spread, corpus: Corpus) -> pd.DataFrame:
    """The cell's labels beside its scores by night, by the readings of all cells' `corpus`.

    Beside those of `score_points`: low_probability, of an event below 70 mg/dL in what is scored,
    and whether it happened.
    """
    origins = cell.on_test.origins
    laid_out = lay_out(forecasts, origins, f"{cell.model}, {cell.name}")
    rows = origin_rows(corpus, laid_out.nights)
    rows_NH = rows[:, None] + np.arange(1, laid_out.target_NH.shape[1] + 1)
    target_NH = np.where(
        corpus.observed_TC[rows_NH, 0], corpus.values_TC[rows_NH, 0].astype(float), np.nan
    )
    quantiles_NHQ = laid_out.quantiles_NHQ
    if cell.clock:
        begins, ends = cell.clock
        hour_NH = corpus.slot_of_day_T[rows_NH] / STEPS_PER_HOUR
        left_out_NH = (hour_NH < begins) | (hour_NH >= ends)
        target_NH[left_out_NH] = np.nan
        quantiles_NHQ = np.where(left_out_NH[..., None], NEVER_LOW_MG_DL, quantiles_NHQ)
    laid_out = replace(laid_out, target_NH=target_NH, quantiles_NHQ=quantiles_NHQ)
    lows = foresee_lows(laid_out, spread)[[*NIGHT, "low_probability"]]
    lows["low_happened"] = low_events(target_NH, LOWS["low"]).happened_N
    by_night = score_points(laid_out, "standard")[1].merge(lows, on=NIGHT, validate="one_to_one")
    if cell.tested_people is not None:
        names = by_night["source"] + "/" + by_night["subject"]
        by_night = by_night[names.isin(cell.tested_people)].reset_index(drop=True)
    labels = cell.labels | {"data": cell.on_test.fingerprint()}
    return pd.concat([pd.DataFrame(labels, index=by_night.index), by_night], axis=1)


def share_of(cells: list[Cell], share: str) -> list[Cell]:
    """The k-th of n parts of the cells, of a share "k/n": no cell is in two; all of "1/1".

    Raises `InputError` where it is no such share.
    """
    words = share.split("/")
    if len(words) == 2 and all(word.isdecimal() for word in words):
        first, parts = map(int, words)
        if 1 <= first <= parts:
            # Cells stand in order of what they cost: each part is to have some of each.
            dealt = np.random.default_rng(0).permutation(len(cells))[first - 1 :: parts]
            return [cells[place] for place in np.sort(dealt)]
    raise InputError(
        f"'share' is {share!r}; it is K/N for the K-th of N parts of the cells, such as 1/4 to 4/4."
    )
