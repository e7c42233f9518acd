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

    There it is laid out scaled and filled forward, so that a window is a slice of it, but for what
    was observed before the window began. A corpus that does not fit (`resident` False) stays where
    it is, on disk if need be, and the rows of each batch are read from it. Before the start of the
    split that a row lies in, its context reads as unobserved, so that no window reaches across a
    boundary.
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
        self._gathered = [CHANNELS.index(name) for name in (*recorded, *doses)]
        self._recorded_at = [channels.context.index(name) for name in recorded]
        self._is_amount_R = torch.tensor([name in AMOUNTS for name in recorded], device=device)
        self._actions_at = [channels.future.index(name) for name in actions]
        clock = [name for name in _OF_CLOCK if name in channels.context]
        self._clock_at = [channels.context.index(name) for name in clock]
        in_order = [*actions, *clock]
        self._future_order = [in_order.index(name) for name in channels.future]
        self._is_recorded_C = torch.ones(len(channels.context), dtype=torch.long, device=device)
        self._is_recorded_C[self._clock_at] = 0

        clock_D2 = fourier_clock(np.arange(STEPS_PER_DAY)).astype(np.float32)
        clock_D2 = clock_D2[:, [_OF_CLOCK.index(name) for name in clock]]
        self._clock_D2 = torch.from_numpy(clock_D2).to(device)
        ahead = np.arange(1, STEPS_PER_DAY + task.horizon_steps) % STEPS_PER_DAY
        self._clock_ahead_DH2 = _slices(self._clock_D2[ahead], task.horizon_steps)
        self._late_T = torch.from_numpy(corpus.late_T).to(device)
        self._slot_of_day_T = torch.from_numpy(corpus.slot_of_day_T).to(device)
        edges, starts = _segment_edges(corpus, splits)
        self._edges = torch.from_numpy(edges).to(device)
        self._starts = torch.from_numpy(starts).to(device)
        self._people_last = corpus.people["last"].to_numpy()
        self._last_of_person = torch.from_numpy(self._people_last).to(device)
        self._mean = torch.tensor([scaler.mean[name] for name in recorded], device=device)
        self._std = torch.tensor([scaler.std[name] for name in recorded], device=device)
        self._action_mean = torch.tensor([scaler.mean[name] for name in actions], device=device)
        self._action_std = torch.tensor([scaler.std[name] for name in actions], device=device)
        kernels = corpus.kernels_4K[[ACTIONS.index(name) for name in actions]]
        self._decay_AKH = torch.from_numpy(_decay_matrices(kernels, task.horizon_steps)).to(device)
        self._steps_L = torch.arange(task.context_steps, device=device)
        self._context_steps = self._steps_L - (task.context_steps - 1)
        self._horizon_steps = torch.arange(1, task.horizon_steps + 1, device=device)

        self._corpus = corpus
        # float32, bool and int16 of a channel, float32 of a dose
        size = len(corpus.late_T) * (7 * len(channels.context) + 4 * len(doses))
        self._resident = size < _free_bytes(self.device) / 2 if resident is None else resident
        if self._resident:
            self._lay_out()

    def gather(self, origin_rows: Tensor) -> Batch:
        """The windows of B origins, given as rows of the corpus (int64)."""
        origin_rows = origin_rows.contiguous()  # torch's searches copy what is not, with a warning
        start_B = self._starts[torch.bucketize(origin_rows, self._edges, right=True)]
        # How many steps of the context lie before the split.
        cut_B = (start_B - origin_rows + (self.task.context_steps - 1)).clamp(min=0)
        take = self._slice if self._resident else self._read
        context_BLC, seen_BLC, given_BKA = take(origin_rows, cut_B)
        # Taken up to 2.5 minutes after the origin, the origin's own reading is not yet there.
        late_B = self._late_T[origin_rows]
        seen_BLC[:, -1, 0] &= ~late_B
        context_BLC[:, -1, 0] = torch.where(late_B, context_BLC[:, -2, 0], context_BLC[:, -1, 0])
        future = self._known_future(origin_rows, given_BKA, seen_BLC)
        return Batch(context_BLC, seen_BLC, *future, *self._target(origin_rows))

    def count_targets(self, origin_rows: Tensor) -> Tensor:
        """How many points of the horizons of B origins are observed."""
        return self._target(origin_rows)[1].sum()

    def person_of(self, rows: np.ndarray) -> np.ndarray:
        """Whose each row of the corpus is: the row of `people`."""
        return np.searchsorted(self._people_last, rows, side="right")

    def _lay_out(self) -> None:
        """All people's rows, with room for the windows of the first and the last of each."""
        before, ahead = self.task.context_steps - 1, self.task.horizon_steps
        first, last = self._corpus.people[["first", "last"]].to_numpy().T
        room = before + ahead
        length = len(self._corpus.late_T) + room * len(first)
        shape = (length, len(self.channels.context))
        filled_PC = torch.zeros(shape, device=self.device)
        observed_PC = torch.zeros(shape, dtype=torch.bool, device=self.device)
        observed_PC[:, self._clock_at] = True
        until_PC = torch.zeros(shape, dtype=torch.int16, device=self.device)
        given_PA = torch.zeros(length, len(self._actions_at), device=self.device)
        for person, (begin, end) in enumerate(zip(first, last, strict=True)):
            values_1SG, observed_1SG = self._values(np.arange(begin, end)[None])
            seen_1SR = observed_1SG[..., : len(self._recorded_at)]
            own = slice(begin + room * person + before, end + room * person + before)
            filled_PC[own, self._recorded_at] = self._fill(values_1SG, seen_1SR)[0]
            observed_PC[own, self._recorded_at] = seen_1SR[0]
            until_SR = _steps_until(seen_1SR | self._is_amount_R, self.task.context_steps)[0]
            until_PC[own, self._recorded_at] = until_SR.to(torch.int16)
            given_PA[own] = (values_1SG * observed_1SG)[0, :, len(self._recorded_at) :]
            around = slice(own.start - before, own.stop + ahead)
            steps = torch.arange(-before, end - begin + ahead, device=self.device)
            filled_PC[around, self._clock_at] = self._clock(
                self._slot_of_day_T[begin : begin + 1], steps
            )[0]
        self._shift = room * torch.arange(len(first), device=self.device)
        kernel_steps = self._decay_AKH.shape[1]
        self._filled_TLC = _slices(filled_PC, before + 1)
        self._observed_TLC = _slices(observed_PC, before + 1)
        self._until_TC = until_PC
        self._given_TKA = _slices(given_PA[before + 1 - kernel_steps :], kernel_steps)
        self._target_TH = _slices(filled_PC[before + 1 :, :1], ahead)[..., 0]
        self._target_observed_TH = _slices(observed_PC[before + 1 :, :1], ahead)[..., 0]

    def _slice(self, origin_rows: Tensor, cut_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Context and its mask, and the doses behind each action, from what is laid out."""
        place_B = self._place(origin_rows)
        context_BLC = self._filled_TLC.index_select(0, place_B)
        seen_BLC = self._observed_TLC.index_select(0, place_B)
        given_BKA = self._given_TKA.index_select(0, place_B)
        # Up to here, what is filled forward comes from before the window, and is not known in it.
        until_BC = self._until_TC[place_B + cut_B] + cut_B[:, None] * self._is_recorded_C
        until_BC = until_BC.clamp(max=len(self._steps_L))
        if self.device.type == "cpu":
            some_W = until_BC.any(dim=1).nonzero()[:, 0]
            most = int(until_BC.numpy().max(initial=0))
        else:  # to ask a GPU which they are would be to wait for it
            some_W = torch.arange(len(place_B), device=self.device)
            most = len(self._steps_L)
        unknown_WMC = self._steps_L[:most, None] < until_BC[some_W, None]
        context_BLC[some_W, :most] = context_BLC[some_W, :most].masked_fill(unknown_WMC, 0.0)
        seen_BLC[some_W, :most] &= ~unknown_WMC
        acting_K = self._steps_L[-given_BKA.shape[1] :]
        if most > len(self._steps_L) - len(acting_K):
            given_BKA = given_BKA * (acting_K >= cut_B[:, None])[..., None]
        return context_BLC, seen_BLC, given_BKA

    def _read(self, origin_rows: Tensor, cut_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from the corpus where it is."""
        rows_BL = (origin_rows[:, None] + self._context_steps).clamp(min=0)
        values_BLG, observed_BLG = self._values(rows_BL.cpu().numpy())
        inside_BL = self._steps_L >= cut_B[:, None]
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

    def _values(self, rows: np.ndarray, channels: int | None = None) -> tuple[Tensor, Tensor]:
        """Values and what of them is observed, (..., G), of the first `channels` or all."""
        at = rows[..., None], self._gathered[:channels]
        values = torch.from_numpy(self._corpus.values_TC[at])
        observed = torch.from_numpy(self._corpus.observed_TC[at])
        return values.to(self.device), observed.to(self.device)

    def _fill(self, values_NSG: Tensor, seen_NSR: Tensor) -> Tensor:
        """Scaled; what is unobserved is the last value before it, of an amount 0."""
        scaled_NSR = (values_NSG[..., : len(self._recorded_at)] - self._mean) / self._std
        filled_NSR = fill_forward(scaled_NSR, seen_NSR)
        return filled_NSR.masked_fill(self._is_amount_R & ~seen_NSR, 0.0)

    def _place(self, origin_rows: Tensor) -> Tensor:
        """Where the context begins in what is laid out."""
        person_B = torch.bucketize(origin_rows, self._last_of_person, right=True)
        return origin_rows + self._shift[person_B]

    def _known_future(
        self, origin_rows: Tensor, given_BKA: Tensor, seen_BLC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What doses still do if nothing more is given, and the clock: (B, H, F) and its mask."""
        clock_BH2 = self._clock_ahead_DH2.index_select(0, self._slot_of_day_T[origin_rows].long())
        shape = (*clock_BH2.shape[:2], len(self.channels.future))
        # The future is known where what acts at the origin is.
        known_BHF = seen_BLC[:, -1:, self.channels.known_ahead].expand(shape).contiguous()
        if not self._actions_at:
            return clock_BH2, known_BHF
        acting_BHA = torch.einsum("bka,akh->bha", given_BKA, self._decay_AKH)
        scaled_BHA = (acting_BHA - self._action_mean) / self._action_std
        known_BHA = known_BHF[..., self._actions_at]
        future_BHF = torch.cat([torch.where(known_BHA, scaled_BHA, 0.0), clock_BH2], dim=-1)
        if self._future_order != sorted(self._future_order):
            future_BHF = future_BHF[..., self._future_order]
        return future_BHF, known_BHF

    def _clock(self, slot_B: Tensor, steps: Tensor) -> Tensor:
        return self._clock_D2[(slot_B.long()[:, None] + steps) % STEPS_PER_DAY]

    def _target(self, origin_rows: Tensor) -> tuple[Tensor, Tensor]:
        origin_rows = origin_rows.contiguous()
        if self._resident:
            place_B = self._place(origin_rows)
            scaled_BH = self._target_TH.index_select(0, place_B)
            observed_BH = self._target_observed_TH.index_select(0, place_B)
        else:
            rows_BH = origin_rows[:, None] + self._horizon_steps
            person_B = torch.bucketize(origin_rows, self._last_of_person, right=True)
            inside_BH = rows_BH < self._last_of_person[person_B][:, None]
            rows_BH = rows_BH.clamp(max=len(self._late_T) - 1)
            values_BH1, observed_BH1 = self._values(rows_BH.cpu().numpy(), channels=1)
            scaled_BH = (values_BH1[..., 0] - self._mean[0]) / self._std[0]
            observed_BH = observed_BH1[..., 0] & inside_BH
        return torch.where(observed_BH, scaled_BH, 0.0), observed_BH


def _segment_edges(corpus: Corpus, splits: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rows where segments begin or end, E, and the first row of what lies between: E + 1.

    Between segments, as before the first and after the last, that is row 0.
    """
    begin, end, _ = split_segments(corpus, splits)
    begin, end = begin[begin < end], end[begin < end]
    edges, starts = np.concatenate([end, begin]), np.concatenate([np.zeros_like(end), begin])
    order = np.argsort(edges, kind="stable")  # where one begins as another ends, it begins
    return edges[order], np.append(0, starts[order])


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
