"""A search of hyper-parameters: each trial is a training, judged by validation nights alone."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import DivergedError, InputError
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.device import settle
from nocturnal_kedro.training.fit import describe, require_apart
from nocturnal_kedro.training.learn import begin, learn, require_windows
from nocturnal_kedro.training.loop import FORECAST, ONE_AT_A_TIME, Care
from nocturnal_kedro.training.options import Hardware, SettledHardware, Training
from nocturnal_kedro.training.resume import Checkpoints
from nocturnal_kedro.training.space import (
    Choice,
    Range,
    Space,
    Tuning,
    Value,
    require_tunable,
    space_of,
    told,
    values_now,
    with_values,
)
from nocturnal_kedro.training.unfinished import Unfinished, only_one

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

logger = logging.getLogger(__name__)

STORE = "trials.log"
SECONDS, FAILURE = "seconds", "failure"


@dataclass(frozen=True)
class Found:
    """What a search has tried, and the parameters of its best trial."""

    trials: pd.DataFrame  # trial, state, validation_rmse, epochs, seconds, failure, and the values
    parameters: dict[str, Any]  # `model_options` of the model; `training` where that was searched


def search(
    name: str,
    given: dict[str, Any],
    data: Data,
    training: Training,
    hardware: Hardware,
    tuning: Tuning,
    trials: int,
    searches: Unfinished,
) -> Found:
    """Try values of the space until there are so many trials, those of earlier runs among them.

    The first trial is the options as they are. What a trial tries follows from `training.seed` and
    the trials before it, so that a search that was cut off goes on as if it had not been. Raises
    `InputError` where there is nothing to search and where every trial failed, `StoppedError` where
    it was told to stop.
    """
    options: Any = plugins.options("model", name, given)
    require_tunable(name, options, trials, hardware)
    data.require_frozen()
    require_windows(name, "validation", data.night_rows("validation"))
    settled = settle(hardware, training)
    space = space_of(name, given, training, tuning)
    with ONE_AT_A_TIME:
        begun = begin(name, options, data, training, settled)
        if begun.start.earlier:
            require_apart(begun.start.earlier, data)
        what = describe(begun) | {
            "space": {n: t.model_dump() if isinstance(t, Range) else t for n, t in space.items()},
            "tuning": tuning.model_dump(exclude={"space"}),
        }
        folder = searches.folder_of(what)
        with only_one(folder):
            study = _open(folder, tuning)
            if not study.trials:
                now = values_now(name, given, training)
                study.enqueue_trial({n: now[n] for n, t in space.items() if _holds(t, now[n])})
            while (number := len(_ended(study))) < trials:
                values = _draw(trial := _take_up(study), space, training.seed)
                logger.info("trial %d, of %d: %s", number + 1, trials, told(values))
                _, tried, trained = with_values(name, given, training, values)
                _try(trial, name, tried, data, trained, settled, _room(folder, number))
            _room(folder, number)
    table = _table(_ended(study), space)
    if not (table["state"] == "complete").any():
        raise InputError(
            f"model '{name}': each of {len(table)} trials failed, the last one so: "
            f"{table[FAILURE].iloc[-1]} Give other values in tuning.space, or more trials."
        )
    return Found(table, with_values(name, given, training, study.best_params)[0])


def _try(
    trial: Trial,
    name: str,
    options: Any,
    data: Data,
    training: Training,
    hardware: SettledHardware,
    room: Path,
) -> None:
    """Train, and tell the study how it went; a trial that goes badly is ended early.

    A training that was cut off goes on from its checkpoint in `room`.
    """
    from optuna import TrialPruned
    from optuna.trial import TrialState

    earlier = trial.study.trials[trial.number].intermediate_values  # before it was cut off

    def watch(epoch: int, score: float) -> None:
        if epoch not in earlier:
            trial.report(score, epoch)
        if trial.should_prune():
            raise TrialPruned

    started, state, failure = time.perf_counter(), TrialState.PRUNED, ""
    try:
        kept = Checkpoints(room, hardware.checkpoint_steps)
        learn(begin(name, options, data, training, hardware), Care(kept, watch=watch))
        state = TrialState.COMPLETE
    except TrialPruned:
        pass
    except (DivergedError, torch.OutOfMemoryError) as error:
        failure = str(error)
        logger.warning("trial %d failed: %s", trial.number + 1, failure)
    trial.set_user_attr(FAILURE, failure)
    trial.set_user_attr(SECONDS, time.perf_counter() - started)
    best = _best(trial.study.trials[trial.number])
    trial.study.tell(trial, best if state == TrialState.COMPLETE else None, state)


def _open(folder: Path, tuning: Tuning) -> Study:
    """The store of the search in `folder`, which nobody else has open.

    A process that is killed may leave half a line and a lock.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    store = folder / STORE
    store.with_name(f"{STORE}.lock").unlink(missing_ok=True)
    if store.exists():
        os.truncate(store, store.read_bytes().rfind(b"\n") + 1)
    try:
        storage = JournalStorage(JournalFileBackend(str(store)))
    except (ValueError, KeyError) as error:
        raise InputError(
            f"'{store}' cannot be read ({error}). Delete it: the search then starts again."
        ) from error
    return optuna.create_study(
        storage=storage,
        study_name="search",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(tuning.prune_after, tuning.prune_from_epoch),
    )


def _take_up(study: Study) -> Trial:
    """The trial that was cut off, or a new one."""
    import optuna

    begun = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    return optuna.Trial(study, begun[0]._trial_id) if begun else study.ask()


def _draw(trial: Trial, space: Space, seed: int) -> dict[str, Value]:
    """What the trial tries; of one that was cut off, what it tried before."""
    from optuna.samplers import TPESampler

    values: dict[str, Value] = {}
    for place, (name, tried) in enumerate(space.items()):
        # One sampler for all would begin its random numbers again after each interruption.
        own_seed = np.random.SeedSequence([seed, trial.number, place]).generate_state(1)[0]
        trial.study.sampler = TPESampler(seed=int(own_seed))
        values[name] = _suggest(trial, name, tried)
    return values


def _suggest(trial: Trial, name: str, tried: Range | Choice) -> Value:
    if not isinstance(tried, Range):
        chosen: Any = trial.suggest_categorical(name, tried)
        return chosen
    if isinstance(tried.low, int) and isinstance(tried.high, int):
        return trial.suggest_int(name, tried.low, tried.high, log=tried.log)
    return trial.suggest_float(name, tried.low, tried.high, log=tried.log)


def _holds(tried: Range | Choice, value: object) -> bool:
    return tried.holds(value) if isinstance(tried, Range) else value in tried


def _ended(study: Study) -> list[FrozenTrial]:
    return [trial for trial in study.trials if trial.state.is_finished()]


def _room(folder: Path, number: int) -> Path:
    """Where the training of a trial is kept; those of the trials before it are gone."""
    room = folder / f"trial-{number:04d}"
    for other in folder.glob("trial-*"):
        if other != room:
            shutil.rmtree(other)
    return room


def _best(trial: FrozenTrial) -> float:
    return min(trial.intermediate_values.values(), default=math.nan)


def _table(ended: list[FrozenTrial], space: Space) -> pd.DataFrame:
    """One row a trial; of one that was cut off, the seconds are those since."""
    return pd.DataFrame(
        {
            "trial": trial.number + 1,
            "state": "failed" if trial.user_attrs[FAILURE] else trial.state.name.lower(),
            FORECAST.score: _best(trial),
            "epochs": len(trial.intermediate_values),
            SECONDS: trial.user_attrs[SECONDS],
            FAILURE: trial.user_attrs[FAILURE],
            **{name: trial.params[name] for name in space},
        }
        for trial in ended
    )
