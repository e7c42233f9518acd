"""The report of a sweep: every variant, how it differs, and the figures that the sweep asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from nocturnal_kedro.figures import Section
from nocturnal_kedro.metrics.compare import Comparison
from nocturnal_kedro.report.page import Page, render, stages_of


@dataclass(frozen=True)
class SweepContent:
    """Everything that the report shows; frames as in docs/datasets.md."""

    name: str
    title: str
    method: str
    sections: list[Section]
    summary: pd.DataFrame
    by_person: pd.DataFrame
    audit: pd.DataFrame
    made_from: dict[str, Any]  # raw files of each prepared part; see sources.Part
    sources: dict[str, str]  # name -> citation
    comparison: Comparison
    run_record: dict[str, Any]  # see hooks.record


def render_sweep(content: SweepContent) -> Page:
    """The whole page, and its figures."""
    return render(
        "sweep.html.j2",
        content.sections,
        content=content,
        tables=[
            {"split": split, "group": group, "rows": rows.to_dict("records")}
            for (split, group), rows in content.summary.groupby(["split", "group"], sort=False)
        ],
        people=content.by_person.groupby(["source", "subject"]).ngroups,
        audit=content.audit.to_dict("records"),
        fingerprint=content.audit["data"].iloc[0],
        made_from=content.made_from,
        stages=stages_of(content.run_record),
    )
