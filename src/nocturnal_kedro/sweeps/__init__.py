"""One module per sweep: an experiment of many variants; the folder is the list of sweeps.

A sweep is made of cells: see `training.cells`. Its module offers
- `TITLE` and `METHOD`, what it asks and how, in words for its report;
- `Options`, what is varied;
- `plan(grounds, options) -> list[Cell]`, every variant of every model and seed;
- `groups(grounds, options) -> DataFrame` (group, source, subject, origin), which test nights are
  also looked at alone; no rows where none are;
- where scores follow from those of other cells, `derive(night_scores) -> night_scores`;
- `sections(tables) -> list[Section]`, the figures of its report, from `metrics.sweeps` tables.
torch is imported inside these functions: the command line lists sweeps without it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import AfterValidator

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import require_known

if TYPE_CHECKING:
    from nocturnal_kedro.training.cells import Cell, Grounds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tables:
    """What a sweep came to: see `metrics.sweeps`."""

    summary: pd.DataFrame
    people: pd.DataFrame


# Options of fresh weights; the rate of these is none for those that are fitted already.
OF_FRESH_WEIGHTS = ("preset", "network", "covariates", "revision", "learning_rate")
NO_GROUPS = pd.DataFrame(columns=["group", "source", "subject", "origin"])


def plan_cells(sweep: str, grounds: Grounds, given: dict[str, Any]) -> list[Cell]:
    """Every cell of a sweep with these options; raises `InputError` on those that it has not."""
    options = plugins.options("sweep", sweep, given)
    cells: list[Cell] = plugins.load("sweep", sweep).plan(grounds, options)
    logger.info("%s: %d cells", sweep, len(cells))
    return cells


def tuned_from(given: dict[str, Any], learning_rate: float | None, *but: str) -> dict[str, Any]:
    """The options of a model that starts from its own fitted weights; without those in `but`.

    The learning rate is the model's usual one for that where None is given.
    """
    kept = {name: v for name, v in given.items() if name not in (*OF_FRESH_WEIGHTS, *but)}
    return kept if learning_rate is None else kept | {"learning_rate": learning_rate}


def one_of(what: str, known: Iterable[str]) -> AfterValidator:
    """Of names in options: raises `InputError` on one that is not known."""
    known = tuple(known)

    def check(names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            require_known(what, name, known)
        return names

    return AfterValidator(check)
