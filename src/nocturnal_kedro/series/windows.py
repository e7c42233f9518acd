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

    There it is laid out scaled and filled forward, each segment of a split with empty room before
    it, so that a window is a slice of it, but for what was observed before the window began. A
    corpus that does not fit (`resident` False) stays where it is, on disk if need be, and the rows
    of each batch are read from it. Before the start of the segment that a row lies in, its context
    reads as unobserved, so that no window reaches across a boundary.
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
        doses = [DOSES[int(ACTIONS.index(name) in OF_CARBS)] for name in actions]
        clock = [name for name in _OF_CLOCK if name in channels.context]
        self._gathered = [CHANNELS.index(name) for name in (*recorded, *doses)]
        self._recorded_at = [channels.context.index(name) for name in recorded]
        self._clock_at = [channels.context.index(name) for name in clock]
        self._actions_at = [channels.future.index(name) for name in actions]
        self._is_amount_R = torch.tensor([name in AMOUNTS for name in recorded], device=device)
        self._mean_R = torch.tensor([scaler.mean[name] for name in recorded], device=device)
        self._std_R = torch.tensor([scaler.std[name] for name in recorded], device=device)

        kernels = corpus.kernels_4K[[ACTIONS.index(name) for name in actions]]
        self._decay_AKH = torch.from_numpy(_decay_matrices(kernels, task.horizon_steps)).to(device)
        self._action_mean_A11, self._action_std_A11 = (
            torch.tensor([of[name] for name in actions], device=device)[:, None, None]
            for of in (scaler.mean, scaler.std)
        )
        self._known_ahead = torch.tensor(channels.known_ahead, dtype=torch.long, device=device)
        clock_D2 = fourier_clock(np.arange(STEPS_PER_DAY)).astype(np.float32)
        clock_D2 = clock_D2[:, [_OF_CLOCK.index(name) for name in clock]]
        self._clock_D2 = torch.from_numpy(clock_D2).to(device)
        # The future of each slot of the day, with room for that of the doses.
        ahead = np.arange(1, STEPS_PER_DAY + task.horizon_steps) % STEPS_PER_DAY
        clock_SF = torch.zeros(len(ahead), len(channels.future), device=device)
        clock_SF[:, [channels.future.index(name) for name in clock]] = self._clock_D2[ahead]
        self._clock_ahead_DHF = _slices(clock_SF, task.horizon_steps)

        self._late_T = torch.from_numpy(corpus.late_T).to(device)
        self._slot_of_day_T = torch.from_numpy(corpus.slot_of_day_T).to(device)
        self._stretches_3S = _stretches(corpus, splits)
        self._starts, self._ends, self._lasts = torch.from_numpy(self._stretches_3S).to(device)
        self._steps_L = torch.arange(task.context_steps, device=device)
        self._context_steps = self._steps_L - (task.context_steps - 1)
        self._horizon_steps = torch.arange(1, task.horizon_steps + 1, device=device)

        self._corpus = corpus
        self._room = max(task.context_steps - 1, task.horizon_steps)
        laid_out = len(corpus.late_T) + self._room * (len(self._ends) + 1)
        # Of a channel float32, bool and int16; float32 of a dose; float32 and bool of the target.
        size = laid_out * (7 * len(channels.context) + 4 * len(doses) + 5)
        self._resident = size < _free_bytes(self.device) / 2 if resident is None else resident
        if self._resident:
            self._lay_out(laid_out)

    def gather(self, origin_rows: Tensor) -> Batch:
        """The windows of B origins, given as rows of the corpus (int64)."""
        origin_rows = origin_rows.contiguous()  # torch's searches copy what is not, with a warning
        stretch_B = torch.bucketize(origin_rows, self._ends, right=True)
        take = self._slice if self._resident else self._read
        context_BLC, seen_BLC, given_BKA = take(origin_rows, stretch_B)
        # Taken up to 2.5 minutes after the origin, the origin's own reading is not yet there.
        late_B = self._late_T.index_select(0, origin_rows)
        glucose_BL, seen_BL = context_BLC[..., 0], seen_BLC[..., 0]
        glucose_BL[:, -1] = torch.where(late_B, glucose_BL[:, -2], glucose_BL[:, -1])
        seen_BL[:, -1] &= ~late_B
        future = self._known_future(origin_rows, given_BKA, seen_BLC)
        return Batch(context_BLC, seen_BLC, *future, *self._target(origin_rows, stretch_B))

    def count_targets(self, origin_rows: Tensor) -> Tensor:
        """How many points of the horizons of B origins are observed."""
        origin_rows = origin_rows.contiguous()
        stretch_B = torch.bucketize(origin_rows, self._ends, right=True)
        return self._target(origin_rows, stretch_B)[1].sum()

    def person_of(self, rows: np.ndarray) -> np.ndarray:
        """Whose each row of the corpus is: the row of `people`."""
        return self._corpus.person_of(rows)

    def _lay_out(self, length: int) -> None:
        """All stretches, with room for what lies before each, and for the targets after it."""
        before, room = self.task.context_steps - 1, self._room
        shape = (length, len(self.channels.context))
        filled_PC = torch.zeros(shape, device=self.device)
        observed_PC = torch.zeros(shape, dtype=torch.bool, device=self.device)
        observed_PC[:, self._clock_at] = True
        until_PC = torch.zeros(shape, dtype=torch.int16, device=self.device)
        given_PA = torch.zeros(length, len(self._actions_at), device=self.device)
        target_P = torch.zeros(length, device=self.device)
        target_observed_P = torch.zeros(length, dtype=torch.bool, device=self.device)
        for number, (begin, end, last) in enumerate(self._stretches_3S.T):
            own = slice(begin + room * (number + 1), end + room * (number + 1))
            values_1SG, observed_1SG = self._values(np.arange(begin, end)[None])
            seen_1SR = observed_1SG[..., : len(self._recorded_at)]
            filled_PC[own, self._recorded_at] = self._fill(values_1SG, seen_1SR)[0]
            observed_PC[own, self._recorded_at] = seen_1SR[0]
            until_1SR = _steps_until(seen_1SR | self._is_amount_R, before + 1)
            until_1SR *= seen_1SR.cumsum(dim=1) > 0  # before the first, nothing is filled forward
            until_PC[own, self._recorded_at] = until_1SR[0].to(torch.int16)
            given_PA[own] = (values_1SG * observed_1SG)[0, :, len(self._recorded_at) :]
            steps = torch.arange(-before, end - begin, device=self.device)
            filled_PC[own.start - before : own.stop, self._clock_at] = self._clock(
                self._slot_of_day_T[begin : begin + 1], steps
            )[0]
            ahead = min(last, end + self.task.horizon_steps)
            values_1S, observed_1S = self._glucose(np.arange(begin, ahead)[None])
            target_P[own.start : own.start + ahead - begin] = values_1S[0]
            target_observed_P[own.start : own.start + ahead - begin] = observed_1S[0]
        kernel_steps = self._decay_AKH.shape[1]
        self._filled_TLC = _slices(filled_PC[room - before :], before + 1)
        self._observed_TLC = _slices(observed_PC[room - before :], before + 1)
        self._until_TC = until_PC[room - before :]
        self._given_TKA = _slices(given_PA[room + 1 - kernel_steps :], kernel_steps)
        self._target_TH = target_P[room + 1 :].unfold(0, self.task.horizon_steps, 1)
        self._target_observed_TH = target_observed_P[room + 1 :].unfold(
            0, self.task.horizon_steps, 1
        )

    def _slice(self, origin_rows: Tensor, stretch_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Context and its mask, and the doses behind each action, from what is laid out."""
        place_B = self._place(origin_rows, stretch_B)
        context_BLC = self._filled_TLC.index_select(0, place_B)
        # Up to here, what is filled forward comes from before the window, and is not known in it.
        until_BC = self._until_TC.index_select(0, place_B)
        if self.device.type == "cpu":
            values_BLC, steps_BC = context_BLC.numpy(), until_BC.numpy()
            for window, channel in zip(*steps_BC.nonzero(), strict=True):
                values_BLC[window, : steps_BC[window, channel], channel] = 0.0
        else:  # to ask a GPU which they are would be to wait for it
            context_BLC.masked_fill_(self._steps_L[:, None] < until_BC[:, None], 0.0)
        seen_BLC = self._observed_TLC.index_select(0, place_B)
        return context_BLC, seen_BLC, self._given_TKA.index_select(0, place_B)

    def _read(self, origin_rows: Tensor, stretch_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from the corpus where it is."""
        rows_BL = origin_rows[:, None] + self._context_steps
        inside_BL = rows_BL >= self._starts[stretch_B][:, None]
        values_BLG, observed_BLG = self._values(rows_BL.clamp(min=0).cpu().numpy())
        observed_BLG &= inside_BL[..., None]
        seen_BLR = observed_BLG[..., : len(self._recorded_at)]
        shape = (*rows_BL.shape, len(self.channels.context))
        context_BLC = torch.zeros(shape, device=self.device)
        context_BLC[..., self._recorded_at] = self._fill(values_BLG, seen_BLR)
        context_BLC[..., self._clock_at] = self._clock(
            self._slot_of_day_T[origin_rows], self._context_steps
        )
        seen_BLC = torch.ones(shape, dtype=torch.bool, device=self.device)
        seen_BLC[..., self._recorded_at] = seen_BLR
        given_BLG = (values_BLG * observed_BLG)[:, -self._decay_AKH.shape[1] :]
        return context_BLC, seen_BLC, given_BLG[..., len(self._recorded_at) :].contiguous()

    def _target(self, origin_rows: Tensor, stretch_B: Tensor) -> tuple[Tensor, Tensor]:
        if self._resident:
            place_B = self._place(origin_rows, stretch_B)
            target_BH = self._target_TH.index_select(0, place_B)
            return target_BH, self._target_observed_TH.index_select(0, place_B)
        rows_BH = origin_rows[:, None] + self._horizon_steps
        inside_BH = rows_BH < self._lasts[stretch_B][:, None]
        rows_BH = rows_BH.clamp(max=len(self._late_T) - 1)
        target_BH, observed_BH = self._glucose(rows_BH.cpu().numpy())
        return target_BH.masked_fill(~inside_BH, 0.0), observed_BH & inside_BH

    def _place(self, origin_rows: Tensor, stretch_B: Tensor) -> Tensor:
        """Where the context begins in what is laid out."""
        return origin_rows.add(stretch_B, alpha=self._room)

    def _values(self, rows: np.ndarray, channels: int | None = None) -> tuple[Tensor, Tensor]:
        """Values and what of them is observed, (..., G), of the first `channels` or all."""
        at = rows[..., None], self._gathered[:channels]
        values = torch.from_numpy(self._corpus.values_TC[at])
        observed = torch.from_numpy(self._corpus.observed_TC[at])
        return values.to(self.device), observed.to(self.device)

    def _glucose(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Scaled, 0 where unobserved, and what is observed; both as `rows` are."""
        values, observed = self._values(rows, channels=1)
        scaled = (values[..., 0] - self._mean_R[0]) / self._std_R[0]
        return scaled.masked_fill(~observed[..., 0], 0.0), observed[..., 0]

    def _fill(self, values_NSG: Tensor, seen_NSR: Tensor) -> Tensor:
        """Scaled; what is unobserved is the last value before it, of an amount 0."""
        scaled_NSR = (values_NSG[..., : len(self._recorded_at)] - self._mean_R) / self._std_R
        filled_NSR = fill_forward(scaled_NSR, seen_NSR)
        return filled_NSR.masked_fill(self._is_amount_R & ~seen_NSR, 0.0)

    def _known_future(
        self, origin_rows: Tensor, given_BKA: Tensor, seen_BLC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What doses still do if nothing more is given, and the clock: (B, H, F) and its mask."""
        slot_B = self._slot_of_day_T.index_select(0, origin_rows).long()
        future_BHF = self._clock_ahead_DHF.index_select(0, slot_B)
        # The future is known where what acts at the origin is.
        known_BF = seen_BLC[:, -1].index_select(1, self._known_ahead)
        if self._actions_at:
            acting_ABH = torch.bmm(given_BKA.permute(2, 0, 1), self._decay_AKH)
            acting_ABH.sub_(self._action_mean_A11).div_(self._action_std_A11)
            nothing = acting_ABH.new_zeros(())
            for acting_BH, at in zip(acting_ABH, self._actions_at, strict=True):
                torch.where(known_BF[:, at, None], acting_BH, nothing, out=future_BHF[..., at])
        return future_BHF, known_BF[:, None].expand_as(future_BHF)

    def _clock(self, slot_B: Tensor, steps: Tensor) -> Tensor:
        return self._clock_D2[(slot_B.long()[:, None] + steps) % STEPS_PER_DAY]


def _stretches(corpus: Corpus, splits: pd.DataFrame) -> np.ndarray:
    """First row, last row (half open) and the person's last, (3, S), of all rows in their order.

    A stretch is a segment of a split, or what of a person lies between two.
    """
    begin, end, _ = split_segments(corpus, splits)
    within = begin < end
    first, last = corpus.people[["first", "last"]].to_numpy(np.int64).T
    edges = np.unique(np.concatenate([first, last, begin[within], end[within]]))
    whose = np.searchsorted(last, edges[:-1], side="right")
    return np.stack([edges[:-1], edges[1:], last[whose]])


def _slices(rows_PC: Tensor, length: int) -> Tensor:
    """A view of all stretches of `length` rows, by their first: (P - length + 1, length, C)."""
    return rows_PC.unfold(0, length, 1).transpose(1, 2)


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


def _steps_until(observed_BLC: Tensor, most: int) -> Tensor:
    """How many steps ahead the next observed one is, 0 where it is itself; at most `most`."""
    steps_L = torch.arange(observed_BLC.shape[1], device=observed_BLC.device)
    next_BLC = torch.where(observed_BLC, steps_L[None, :, None], len(steps_L) + most)
    next_BLC = next_BLC.flip(1).cummin(dim=1).values.flip(1)
    return (next_BLC - steps_L[None, :, None]).clamp(max=most)


def _decay_matrices(kernels_AK: np.ndarray, horizon: int) -> np.ndarray:
    """What is left at step h of what was given K - 1 - k slots before the origin, (A, K, H)."""
    steps = kernels_AK.shape[1]
    age_KH = np.arange(steps)[::-1, None] + np.arange(1, horizon + 1)
    padded_AS = np.pad(kernels_AK, ((0, 0), (0, horizon)))
    return np.ascontiguousarray(padded_AS[:, age_KH])
