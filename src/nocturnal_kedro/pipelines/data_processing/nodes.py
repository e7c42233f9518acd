"""Raw readings -> series -> corpus -> splits and origins, measured and audited."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics import outcomes
from nocturnal_kedro.series.audit import (
    Audited,
    AuditOptions,
    audit_leaks,
    require_passed,
)
from nocturnal_kedro.series.corpus import Corpus, build_corpus
from nocturnal_kedro.series.grid import GridOptions
from nocturnal_kedro.series.origins import Task, build_origins
from nocturnal_kedro.series.overlap import find_overlaps
from nocturnal_kedro.series.physiology import Physiology
from nocturnal_kedro.series.preparation import CohortOptions, Prepared, leave_out, prepare
from nocturnal_kedro.series.quality import measure_people
from nocturnal_kedro.series.splits import SplitOptions, build_splits
from nocturnal_kedro.sources import Part, digest_of

logger = logging.getLogger(__name__)


def prepare_parts(readings: list[Part], grid: GridOptions) -> dict[str, Callable[[], Prepared]]:
    """How to make each part's series, by the digest of what it is made from.

    The catalog makes those that are not there yet, on as many workers as there are.
    """
    makers: dict[str, Callable[[], Prepared]] = {}
    for part in readings:
        made_from = part.made_from(grid)
        digest = digest_of(made_from)
        if digest in makers:
            raise InputError(
                f"source '{part.source}': {part.name} is read twice with the same options. Name "
                f"each source once."
            )
        makers[digest] = partial(_prepare_part, part, grid, made_from)
    return makers


def join_parts(
    prepared: Prepared, cohort: CohortOptions
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """All series, the tally of every row, who shares readings, and what it is all made from."""
    prepared = leave_out(prepared, cohort)
    mended = prepared.tally.query("stage == 'read' and effect == 'changed'")
    for (source, reason), rows in mended.groupby(["source", "reason"])["rows"].sum().items():
        logger.info("%s: %s, %d rows", source, reason, rows)
    return prepared.series, prepared.tally, find_overlaps(prepared.marks), prepared.made_from


def split_people(series: pd.DataFrame, splits: SplitOptions) -> pd.DataFrame:
    """The frozen table of who and when is in which split."""
    return build_splits(series, splits)


def assemble_corpus(
    series: pd.DataFrame, physiology: Physiology, made_from: dict[str, Any]
) -> Corpus:
    """The resident arrays, with what doses still do."""
    return build_corpus(series, physiology, made_from)


def freeze_origins(
    corpus: Corpus, splits: pd.DataFrame, series_tally: pd.DataFrame, task: Task
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The frozen table of eligible origins, and the whole tally of rows and nights."""
    origins, nights_tally = build_origins(corpus, splits, task)
    return origins, pd.concat([series_tally, nights_tally], ignore_index=True)


def describe_nights(corpus: Corpus, origins: pd.DataFrame, task: Task) -> pd.DataFrame:
    """What came of every frozen night: lows, rescues, and how usual lows are for the person."""
    return outcomes.describe_nights(corpus, origins, task)


def measure_quality(
    series: pd.DataFrame, corpus: Corpus, series_tally: pd.DataFrame, overlaps: pd.DataFrame
) -> pd.DataFrame:
    """What each person's record is like, and what in it is suspect."""
    return measure_people(series, corpus, series_tally, overlaps)


def audit_data(
    readings: list[Part],
    series: pd.DataFrame,
    corpus: Corpus,
    splits: pd.DataFrame,
    origins: pd.DataFrame,
    overlaps: pd.DataFrame,
    task: Task,
    physiology: Physiology,
    grid: GridOptions,
    audit: AuditOptions,
) -> pd.DataFrame:
    """Every leak check; one that fails fails the run."""
    audited = Audited(
        series=series,
        corpus=corpus,
        splits=splits,
        origins=origins,
        overlaps=overlaps,
        raw=_read_some(readings, origins, audit),
        task=task,
        physiology=physiology,
        grid=grid,
    )
    checked = audit_leaks(audited, audit)
    require_passed(checked)
    return checked


def _read_some(
    parts: list[Part], origins: pd.DataFrame, audit: AuditOptions
) -> dict[tuple[str, str], pd.DataFrame]:
    """The readings of some people with origins, from parts drawn at random, read again."""
    draw = np.random.default_rng(audit.seed)
    with_origins = set(zip(origins["source"], origins["subject"], strict=True))
    raw: dict[tuple[str, str], pd.DataFrame] = {}
    for number in draw.permutation(len(parts))[: audit.parts]:
        frame = parts[number].read().frame
        people = [(parts[number].source, str(name)) for name in frame["subject"].unique()]
        known = [person for person in people if person in with_origins]
        for chosen in draw.permutation(len(known))[: audit.people]:
            raw[known[chosen]] = frame[frame["subject"] == known[chosen][1]]
    return raw


def _prepare_part(part: Part, grid: GridOptions, made_from: dict[str, Any]) -> Prepared:
    return prepare(part.source, part.read(), grid, made_from)
