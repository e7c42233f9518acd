"""The same windows that models get, as plain arrays in natural units."""

from __future__ import annotations

import numpy as np
import torch

from nocturnal_kedro.baselines import History
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.series.nights import UNSEEN, Nights
from nocturnal_kedro.series.origins import rows_of_split
from nocturnal_kedro.series.scaler import GLUCOSE
from nocturnal_kedro.series.windows import Batch, WindowGatherer
from nocturnal_kedro.training.data import Data

SAMPLED = 10_000  # windows around the anchor, at most, for a baseline that needs many
HELD = 50_000  # origins, at most, all at once: of midnights a cohort has fewer, sliding are more


def gather_history(
    data: Data,
    gatherer: WindowGatherer,
    around_anchor: np.ndarray,
    people: tuple[str, ...],
    seed: int,
) -> History:
    """The training rows and nights, and how to sample windows from the rows `around_anchor`."""
    corpus = data.corpus
    rows = rows_of_split(corpus, data.splits, "train")

    def gather(of: np.ndarray, most: int) -> tuple[Nights, np.ndarray]:
        chosen = np.random.default_rng(seed).permutation(of)[:most]
        return gather_nights(corpus, gatherer, np.sort(chosen), people)

    nights, target_NH = gather(data.night_rows("train"), HELD)

    return History(
        glucose_T=np.where(corpus.observed_TC[rows, 0], corpus.values_TC[rows, 0], np.nan),
        person_T=_person_index(corpus, people, rows),
        slot_of_day_T=corpus.slot_of_day_T[rows].astype(int),
        people=len(people),
        nights=nights,
        target_NH=target_NH,
        sample=lambda: gather(around_anchor, SAMPLED),
    )


def gather_nights(
    corpus: Corpus, gatherer: WindowGatherer, rows: np.ndarray, people: tuple[str, ...]
) -> tuple[Nights, np.ndarray]:
    """Windows at `rows`, and what happened in their horizons, (N, H) in mg/dL."""
    batch = gatherer.gather(torch.from_numpy(rows))
    steps_L = np.arange(1 - gatherer.task.context_steps, 1)
    past = _natural(gatherer, gatherer.channels.context, batch.context_BLC)
    ahead = _natural(gatherer, gatherer.channels.future, batch.future_BHF)
    seen, known = batch.context_observed_BLC.numpy(), batch.future_observed_BHF.numpy()
    nights = Nights(
        glucose_NL=_glucose(corpus, rows, steps_L, batch.context_observed_BLC[..., 0]),
        past={
            name: np.where(seen[..., gatherer.channels.context.index(name)], values, np.nan)
            for name, values in past.items()
            if name != GLUCOSE
        },
        ahead={
            name: np.where(known[..., gatherer.channels.future.index(name)], values, np.nan)
            for name, values in ahead.items()
        },
        person_N=_person_index(corpus, people, rows),
        slot_of_day_N=corpus.slot_of_day_T[rows].astype(int),
        horizon=gatherer.task.horizon_steps,
    )
    return nights, targets(corpus, rows, batch)


def targets(corpus: Corpus, rows: np.ndarray, batch: Batch) -> np.ndarray:
    """What happened in the horizon, (N, H) in mg/dL; NaN where unobserved."""
    steps_H = np.arange(1, batch.target_BH.shape[1] + 1)
    return _glucose(corpus, rows, steps_H, batch.target_observed_BH)


def _natural(
    gatherer: WindowGatherer, names: tuple[str, ...], values: torch.Tensor
) -> dict[str, np.ndarray]:
    """Each channel but the clock's in the corpus's own unit, as float32."""
    mean, std = gatherer.scaler.mean, gatherer.scaler.std
    return {
        name: values[..., number].numpy() * np.float32(std[name]) + np.float32(mean[name])
        for number, name in enumerate(names)
        if name in mean
    }


def _glucose(
    corpus: Corpus, rows: np.ndarray, steps: np.ndarray, observed: torch.Tensor
) -> np.ndarray:
    """Readings as they are: scaled and back, 70 mg/dL would no longer be 70."""
    row_NS = (rows[:, None] + steps).clip(0, len(corpus.values_TC) - 1)
    return np.where(observed.cpu().numpy(), corpus.values_TC[row_NS, 0].astype(float), np.nan)


def _person_index(corpus: Corpus, people: tuple[str, ...], rows: np.ndarray) -> np.ndarray:
    """The index of each row's person among `people`, or UNSEEN."""
    index = {person: number for number, person in enumerate(people)}
    names = corpus.people["source"] + "/" + corpus.people["subject"]
    index_P = np.array([index.get(name, UNSEEN) for name in names])
    return index_P[corpus.person_of(rows)]
