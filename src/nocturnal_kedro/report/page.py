"""What every page has: one self-contained HTML file from a template, frames and figures."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pandas as pd

from nocturnal_kedro.figures import SPLIT_TITLES, Section
from nocturnal_kedro.metrics.compare import FEWEST_TO_TELL_APART

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PLOTLY_CONFIG = {"displayModeBar": False, "responsive": True}


def render(template: str, sections: Iterable[Section], **shown: Any) -> str:
    """The page as text."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, loader=FunctionLoader(_read)
    )
    return environment.get_template(template).render(
        sections=[
            (section, _div(section.figure, f"figure-{number}"))
            for number, section in enumerate(sections)
        ],
        fewest=FEWEST_TO_TELL_APART,
        split_titles=SPLIT_TITLES,
        plotlyjs=get_plotlyjs(),
        **shown,
    )


def stages_of(run_record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The record of every stage, its parameters flat: `training.epochs` and so on."""
    return {
        stage: record
        | {"parameters": pd.json_normalize(record["parameters"]).to_dict("records")[0]}
        for stage, record in run_record["stages"].items()
    }


def _read(name: str) -> str:
    return (files("nocturnal_kedro.report") / name).read_text(encoding="utf-8")


def _div(figure: Figure, identifier: str) -> str:
    return str(
        figure.to_html(
            full_html=False, include_plotlyjs=False, div_id=identifier, config=PLOTLY_CONFIG
        )
    )
