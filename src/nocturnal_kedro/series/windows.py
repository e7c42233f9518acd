"""From the resident corpus to a `Batch`: windows are gathered on the device, never stored.

Shapes: B windows, L context steps, H horizon steps, C context channels, F known-future channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.corpus import CHANNELS, Corpus, fourier_clock
from nocturnal_kedro.series.origins import Task, rows_of_split, segment_starts
from nocturnal_kedro.series.schema import STEPS_PER_DAY

# What a model sees of the past, and, from the second on, of the future. The future of insulin and
# carbs on board is the decay of what was given up to the origin: no later dose is in it.
CONTEXT_CHANNELS = ("glucose_mg_dl", "iob_u", "cob_g", "clock_sin", "clock_cos")
FUTURE_CHANNELS = CONTEXT_CHANNELS[1:]
_SCALED = 3  # the first channels are scaled; the clock is not
# Of the corpus a window needs those, and the amounts that the decay-only future follows from.
_GATHERED = [CHANNELS.index(name) for name in (*CONTEXT_CHANNELS[:_SCALED], "insulin_u", "carbs_g")]
_AMOUNTS = slice(_SCALED, _SCALED + 2)


class Batch(NamedTuple):
    """Windows in scaled units; what is unobserved is filled from earlier values alone, else 0."""

    context_BLC: Tensor
    context_observed_BLC: Tensor
    future_BHF: Tensor
    future_observed_BHF: Tensor
    target_BH: Tensor  # 0 where unobserved
    target_observed_BH: Tensor


@dataclass(frozen=True)
class Scaler:
    """Mean and standard deviation of glucose, insulin and carbs on board in training rows."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def fit(cls, corpus: Corpus, train_rows: np.ndarray) -> Scaler:
        """Over the observed values in `train_rows`; a channel never observed keeps 0 and 1."""
        scaled = _GATHERED[:_SCALED]
        values = corpus.values_TC[train_rows][:, scaled].astype(np.float64)
        observed = corpus.observed_TC[train_rows][:, scaled]
        count = np.maximum(observed.sum(axis=0), 1)
        mean = (values * observed).sum(axis=0) / count
        variance = (((values - mean) ** 2) * observed).sum(axis=0) / count
        std = np.where(variance > 0, np.sqrt(variance), 1.0)
        return cls(tuple(map(float, mean)), tuple(map(float, std)))

    def to_mg_dl(self, scaled: Tensor) -> Tensor:
        """Glucose back in mg/dL."""
        return scaled * self.std[0] + self.mean[0]


def fit_scaler(corpus: Corpus, splits: pd.DataFrame) -> Scaler:
    """The scaler of the training rows, and of no other row."""
    return Scaler.fit(corpus, rows_of_split(corpus, splits, "train"))


class WindowGatherer:
    """Holds the corpus on a device and gathers batches of windows from it.

    Before the start of the split that a row lies in, its context reads as unobserved, so that no
    window reaches across a boundary.
    """

    def __init__(
        self,
        corpus: Corpus,
        splits: pd.DataFrame,
        scaler: Scaler,
        task: Task,
        device: torch.device | str = "cpu",
    ) -> None:
        if corpus.kernels_4K.shape[1] > task.context_steps:
            raise InputError(
                f"physiology: doses act for {corpus.kernels_4K.shape[1]} steps, more than the "
                f"context's {task.context_steps}. Lengthen it, or shorten the action."
            )
        self.task = task
        self.scaler = scaler
        self.device = torch.device(device)
        clock_D2 = fourier_clock(np.arange(STEPS_PER_DAY)).astype(np.float32)
        self._values_TC = torch.from_numpy(corpus.values_TC[:, _GATHERED]).to(device)
        self._observed_TC = torch.from_numpy(corpus.observed_TC[:, _GATHERED]).to(device)
        self._late_T = torch.from_numpy(corpus.late_T).to(device)
        self._clock_D2 = torch.from_numpy(clock_D2).to(device)
        self._slot_of_day_T = torch.from_numpy(corpus.slot_of_day_T.astype(np.int64)).to(device)
        self._segment_start_T = torch.from_numpy(segment_starts(corpus, splits)).to(device)
        self._people_last = corpus.people["last"].to_numpy()
        people_last = np.repeat(
            self._people_last, (corpus.people["last"] - corpus.people["first"]).to_numpy()
        )
        self._person_last_T = torch.from_numpy(people_last).to(device)
        self._mean = torch.tensor(scaler.mean, device=device)
        self._std = torch.tensor(scaler.std, device=device)
        self._decay_2KH = torch.from_numpy(
            _decay_matrices(corpus.kernels_4K[:2], task.horizon_steps)
        ).to(device)
        self._context_steps = torch.arange(1 - task.context_steps, 1, device=device)
        self._horizon_steps = torch.arange(1, task.horizon_steps + 1, device=device)

    def gather(self, origin_rows: Tensor) -> Batch:
        """The windows of B origins, given as rows of the corpus (int64)."""
        rows_BL = origin_rows[:, None] + self._context_steps
        inside_BL = rows_BL >= self._segment_start_T[origin_rows][:, None]
        rows_BL = rows_BL.clamp(min=0)
        observed_BLC = self._observed_TC[rows_BL] & inside_BL[..., None]
        values_BLC = self._values_TC[rows_BL]
        # Taken up to 2.5 minutes after the origin, the origin's own reading is not yet there.
        observed_BLC[:, -1, 0] &= ~self._late_T[origin_rows]

        scaled_BL3 = (values_BLC[..., :_SCALED] - self._mean) / self._std
        filled_BL3 = fill_forward(scaled_BL3, observed_BLC[..., :_SCALED])
        clock_BL2 = self._clock(origin_rows, self._context_steps)
        context_BLC = torch.cat([filled_BL3, clock_BL2], dim=-1)
        known_BL2 = torch.ones_like(clock_BL2, dtype=torch.bool)
        context_observed_BLC = torch.cat([observed_BLC[..., :_SCALED], known_BL2], dim=-1)

        target_BH, target_observed_BH = self._target(origin_rows)
        return Batch(
            context_BLC,
            context_observed_BLC,
            *self._known_future(origin_rows, values_BLC, observed_BLC),
            target_BH,
            target_observed_BH,
        )

    def person_of(self, rows: np.ndarray) -> np.ndarray:
        """Whose each row of the corpus is: the row of `people`."""
        return np.searchsorted(self._people_last, rows, side="right")

    def _known_future(
        self, origin_rows: Tensor, values_BLC: Tensor, observed_BLC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is on board if nothing more is given, and the clock: (B, H, F) and its mask."""
        kernel_steps = self._decay_2KH.shape[1]
        given_BK2 = (values_BLC * observed_BLC)[:, -kernel_steps:, _AMOUNTS]
        on_board_BH2 = torch.einsum("bkc,ckh->bhc", given_BK2, self._decay_2KH)
        scaled_BH2 = (on_board_BH2 - self._mean[1:]) / self._std[1:]
        # The future is known where what is on board at the origin is.
        known_BH2 = observed_BLC[:, -1:, 1:3].expand_as(scaled_BH2)
        clock_BH2 = self._clock(origin_rows, self._horizon_steps)
        future_BHF = torch.cat([torch.where(known_BH2, scaled_BH2, 0.0), clock_BH2], dim=-1)
        known_BHF = torch.cat([known_BH2, torch.ones_like(known_BH2)], dim=-1)
        return future_BHF, known_BHF

    def _clock(self, origin_rows: Tensor, steps: Tensor) -> Tensor:
        slot_of_day = (self._slot_of_day_T[origin_rows][:, None] + steps) % STEPS_PER_DAY
        return self._clock_D2[slot_of_day]

    def _target(self, origin_rows: Tensor) -> tuple[Tensor, Tensor]:
        rows_BH = origin_rows[:, None] + self._horizon_steps
        inside_BH = rows_BH < self._person_last_T[origin_rows][:, None]
        rows_BH = rows_BH.clamp(max=len(self._late_T) - 1)
        observed_BH = self._observed_TC[rows_BH, 0] & inside_BH
        scaled_BH = (self._values_TC[rows_BH, 0] - self._mean[0]) / self._std[0]
        return torch.where(observed_BH, scaled_BH, 0.0), observed_BH


def fill_forward(values_BLC: Tensor, observed_BLC: Tensor) -> Tensor:
    """Each unobserved value becomes the last observed one before it; 0 where there is none."""
    steps_L = torch.arange(values_BLC.shape[1], device=values_BLC.device)
    last_BLC = torch.where(observed_BLC, steps_L[None, :, None], -1).cummax(dim=1).values
    filled_BLC = values_BLC.gather(1, last_BLC.clamp(min=0))
    return torch.where(last_BLC >= 0, filled_BLC, 0.0)


def _decay_matrices(kernels_2K: np.ndarray, horizon: int) -> np.ndarray:
    """Share left at step h of what was given K - 1 - k slots before the origin, (2, K, H)."""
    steps = kernels_2K.shape[1]
    age_KH = np.arange(steps)[::-1, None] + np.arange(1, horizon + 1)
    padded_2A = np.pad(kernels_2K, ((0, 0), (0, horizon)))
    return np.ascontiguousarray(padded_2A[:, age_KH])
