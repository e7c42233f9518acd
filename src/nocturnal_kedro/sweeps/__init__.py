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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from nocturnal_kedro import plugins

if TYPE_CHECKING:
    from nocturnal_kedro.training.cells import Cell, Grounds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tables:
    """What a sweep came to: see `metrics.sweeps`."""

    summary: pd.DataFrame
    people: pd.DataFrame


NO_GROUPS = pd.DataFrame(columns=["group", "source", "subject", "origin"])


def plan_cells(sweep: str, grounds: Grounds, given: dict[str, Any]) -> list[Cell]:
    """Every cell of a sweep with these options; raises `InputError` on those that it has not."""
    options = plugins.options("sweep", sweep, given)
    cells: list[Cell] = plugins.load("sweep", sweep).plan(grounds, options)
    logger.info("%s: %d cells", sweep, len(cells))
    return cells
