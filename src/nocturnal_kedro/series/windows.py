"""From the resident corpus to a `Batch`: windows are gathered on the device, never stored.

Shapes: B windows, L context steps, H horizon steps, C context channels, F known-future channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.corpus import CHANNELS, Corpus, fourier_clock
from nocturnal_kedro.series.covariates import AMOUNTS, CLOCK, DOSES, KNOWN_AHEAD
from nocturnal_kedro.series.origins import Task, split_segments
from nocturnal_kedro.series.physiology import ACTIONS, OF_CARBS
from nocturnal_kedro.series.scaler import GLUCOSE, Scaler
from nocturnal_kedro.series.schema import STEPS_PER_DAY

_OF_CLOCK = ("clock_sin", "clock_cos")


@dataclass(frozen=True)
class Channels:
    """Which channels a window holds: glucose first, then the covariates in the order given.

    What insulin and carbs still do, and the clock, have a future that is known at the origin: the
    decay of what was given up to it. No later dose is in it.
    """

    covariates: tuple[str, ...]

    @cached_property
    def context(self) -> tuple[str, ...]:
        """Names along C."""
        return (GLUCOSE, *_spelt_out(self.covariates))

    @cached_property
    def future(self) -> tuple[str, ...]:
        """Names along F: those of the context that are known ahead, in the same order."""
        return tuple(_spelt_out(name for name in self.covariates if name in KNOWN_AHEAD))

    @cached_property
    def known_ahead(self) -> list[int]:
        """Where along C the channels of F stand."""
        return [self.context.index(name) for name in self.future]


def _spelt_out(covariates: Iterable[str]) -> list[str]:
    return [channel for name in covariates for channel in (_OF_CLOCK if name == CLOCK else (name,))]


class Batch(NamedTuple):
    """Windows in scaled units, and what of them is observed.

    A level that is unobserved holds the last value before it, else 0. An amount holds 0, the mean
    of the training rows: the last dose again would be one that nobody gave.
    """

    context_BLC: Tensor
    context_observed_BLC: Tensor
    future_BHF: Tensor
    future_observed_BHF: Tensor
    target_BH: Tensor  # 0 where unobserved
    target_observed_BH: Tensor


class WindowGatherer:
    """Holds the corpus on a device and gathers batches of windows from it.

    A corpus that does not fit there (`resident` False) stays where it is, on disk if need be, and
    the rows of each batch are read from it. Before the start of the split that a row lies in, its
    context reads as unobserved, so that no window reaches across a boundary.
    """

    def __init__(
        self,
        corpus: Corpus,
        splits: pd.DataFrame,
        scaler: Scaler,
        task: Task,
        channels: Channels,
        device: torch.device | str = "cpu",
        resident: bool | None = None,  # None: where it fits
    ) -> None:
        if corpus.kernels_4K.shape[1] > task.context_steps:
            raise InputError(
                f"physiology: doses act for {corpus.kernels_4K.shape[1]} steps, more than the "
                f"context's {task.context_steps}. Lengthen it, or shorten the action."
            )
        self.task = task
        self.scaler = scaler
        self.channels = channels
        self.device = torch.device(device)

        # The clock is computed, all else stands in the corpus; so do the doses behind a future.
        recorded = [name for name in channels.context if name not in _OF_CLOCK]
        actions = [name for name in recorded if name in ACTIONS]
        gathered = [CHANNELS.index(name) for name in (*recorded, *(DOSES if actions else ()))]
        self._recorded = len(recorded)
        self._actions_at = [recorded.index(name) for name in actions]
        self._amount_of = [int(ACTIONS.index(name) in OF_CARBS) for name in actions]
        self._is_amount_R = torch.tensor([name in AMOUNTS for name in recorded], device=device)
        in_order = [*recorded, *_OF_CLOCK]
        self._context_order = [in_order.index(name) for name in channels.context]
        in_order = [*actions, *_OF_CLOCK]
        self._future_order = [in_order.index(name) for name in channels.future]

        clock_D2 = fourier_clock(np.arange(STEPS_PER_DAY)).astype(np.float32)
        size = len(corpus.late_T) * len(gathered) * (4 + 1)  # float32 and bool
        self._corpus, self._gathered = corpus, gathered
        self._resident = size < _free_bytes(self.device) / 2 if resident is None else resident
        if self._resident:
            self._values_TG = torch.from_numpy(corpus.values_TC[:, gathered]).to(device)
            self._observed_TG = torch.from_numpy(corpus.observed_TC[:, gathered]).to(device)
        self._late_T = torch.from_numpy(corpus.late_T).to(device)
        self._clock_D2 = torch.from_numpy(clock_D2).to(device)
        self._slot_of_day_T = torch.from_numpy(corpus.slot_of_day_T).to(device)
        begin, end, _ = split_segments(corpus, splits)
        self._segment_begin = torch.from_numpy(begin).to(device)
        self._segment_end = torch.from_numpy(end).to(device)
        self._people_last = corpus.people["last"].to_numpy()
        self._last_of_person = torch.from_numpy(self._people_last).to(device)
        self._mean = torch.tensor([scaler.mean[name] for name in recorded], device=device)
        self._std = torch.tensor([scaler.std[name] for name in recorded], device=device)
        kernels = corpus.kernels_4K[[ACTIONS.index(name) for name in actions]]
        self._decay_AKH = torch.from_numpy(_decay_matrices(kernels, task.horizon_steps)).to(device)
        self._context_steps = torch.arange(1 - task.context_steps, 1, device=device)
        self._horizon_steps = torch.arange(1, task.horizon_steps + 1, device=device)

    def gather(self, origin_rows: Tensor) -> Batch:
        """The windows of B origins, given as rows of the corpus (int64)."""
        origin_rows = origin_rows.contiguous()  # torch's searches copy what is not, with a warning
        rows_BL = origin_rows[:, None] + self._context_steps
        segment_B = torch.bucketize(origin_rows, self._segment_begin, right=True) - 1
        begin_B = self._segment_begin[segment_B.clamp(min=0)]
        within_B = (segment_B >= 0) & (origin_rows < self._segment_end[segment_B])
        inside_BL = rows_BL >= torch.where(within_B, begin_B, 0)[:, None]
        values_BLG, observed_BLG = self._read(rows_BL.clamp(min=0))
        observed_BLG &= inside_BL[..., None]
        # Taken up to 2.5 minutes after the origin, the origin's own reading is not yet there.
        observed_BLG[:, -1, 0] &= ~self._late_T[origin_rows]

        recorded_BLR = observed_BLG[..., : self._recorded]
        scaled_BLR = (values_BLG[..., : self._recorded] - self._mean) / self._std
        filled_BLR = fill_forward(scaled_BLR, recorded_BLR)
        invented_BLR = self._is_amount_R & ~recorded_BLR
        filled_BLR = filled_BLR.masked_fill(invented_BLR, 0.0)
        clock_BL2 = self._clock(origin_rows, self._context_steps)
        context = torch.cat([filled_BLR, clock_BL2], dim=-1)
        seen = torch.cat([recorded_BLR, torch.ones_like(clock_BL2, dtype=torch.bool)], dim=-1)

        target_BH, target_observed_BH = self._target(origin_rows)
        return Batch(
            context[..., self._context_order],
            seen[..., self._context_order],
            *self._known_future(origin_rows, values_BLG, observed_BLG),
            target_BH,
            target_observed_BH,
        )

    def count_targets(self, origin_rows: Tensor) -> Tensor:
        """How many points of the horizons of B origins are observed."""
        return self._target(origin_rows)[1].sum()

    def person_of(self, rows: np.ndarray) -> np.ndarray:
        """Whose each row of the corpus is: the row of `people`."""
        return np.searchsorted(self._people_last, rows, side="right")

    def _read(self, rows: Tensor, channels: int | None = None) -> tuple[Tensor, Tensor]:
        """Values and what of them is observed, (..., G), of the first `channels` or all."""
        if self._resident:
            return self._values_TG[:, :channels][rows], self._observed_TG[:, :channels][rows]
        at, of = rows.cpu().numpy()[..., None], self._gathered[:channels]
        values = torch.from_numpy(self._corpus.values_TC[at, of])
        observed = torch.from_numpy(self._corpus.observed_TC[at, of])
        return values.to(self.device), observed.to(self.device)

    def _known_future(
        self, origin_rows: Tensor, values_BLG: Tensor, observed_BLG: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What doses still do if nothing more is given, and the clock: (B, H, F) and its mask."""
        at = self._actions_at
        kernel_steps = self._decay_AKH.shape[1]
        given_BKG = (values_BLG * observed_BLG)[:, -kernel_steps:, self._recorded :]
        given_BKA = given_BKG[..., self._amount_of]
        acting_BHA = torch.einsum("bka,akh->bha", given_BKA, self._decay_AKH)
        scaled_BHA = (acting_BHA - self._mean[at]) / self._std[at]
        # The future is known where what acts at the origin is.
        known_BHA = observed_BLG[:, -1:, at].expand_as(scaled_BHA)
        clock_BH2 = self._clock(origin_rows, self._horizon_steps)
        future = torch.cat([torch.where(known_BHA, scaled_BHA, 0.0), clock_BH2], dim=-1)
        known = torch.cat([known_BHA, torch.ones_like(clock_BH2, dtype=torch.bool)], dim=-1)
        return future[..., self._future_order], known[..., self._future_order]

    def _clock(self, origin_rows: Tensor, steps: Tensor) -> Tensor:
        slot_of_day = (self._slot_of_day_T[origin_rows].long()[:, None] + steps) % STEPS_PER_DAY
        return self._clock_D2[slot_of_day]

    def _target(self, origin_rows: Tensor) -> tuple[Tensor, Tensor]:
        rows_BH = origin_rows[:, None] + self._horizon_steps
        person_B = torch.bucketize(origin_rows.contiguous(), self._last_of_person, right=True)
        inside_BH = rows_BH < self._last_of_person[person_B][:, None]
        values_BH1, observed_BH1 = self._read(rows_BH.clamp(max=len(self._late_T) - 1), channels=1)
        observed_BH = observed_BH1[..., 0] & inside_BH
        scaled_BH = (values_BH1[..., 0] - self._mean[0]) / self._std[0]
        return torch.where(observed_BH, scaled_BH, 0.0), observed_BH


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def fill_forward(values_BLC: Tensor, observed_BLC: Tensor) -> Tensor:
    """Each unobserved value becomes the last observed one before it; 0 where there is none."""
    steps_L = torch.arange(values_BLC.shape[1], device=values_BLC.device)
    last_BLC = torch.where(observed_BLC, steps_L[None, :, None], -1).cummax(dim=1).values
    filled_BLC = values_BLC.gather(1, last_BLC.clamp(min=0))
    return torch.where(last_BLC >= 0, filled_BLC, 0.0)


def _decay_matrices(kernels_AK: np.ndarray, horizon: int) -> np.ndarray:
    """What is left at step h of what was given K - 1 - k slots before the origin, (A, K, H)."""
    steps = kernels_AK.shape[1]
    age_KH = np.arange(steps)[::-1, None] + np.arange(1, horizon + 1)
    padded_AS = np.pad(kernels_AK, ((0, 0), (0, horizon)))
    return np.ascontiguousarray(padded_AS[:, age_KH])
