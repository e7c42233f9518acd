"""What every page has: one self-contained HTML file from a template, frames and figures."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from nocturnal_kedro.figures import SPLIT_TITLES, Section
from nocturnal_kedro.metrics.compare import FEWEST_TO_TELL_APART

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PLOTLY_CONFIG = {"displayModeBar": False, "responsive": True}


class Page(NamedTuple):
    """A report, and its figures by themselves."""

    html: str
    figures: dict[str, dict[str, Any]]  # by title, as plotly's JSON


def render(template: str, sections: list[Section], **shown: Any) -> Page:
    """The page from its template."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, loader=FunctionLoader(_read)
    )
    html = environment.get_template(template).render(
        sections=[
            (section, _div(section.figure, f"figure-{number}"))
            for number, section in enumerate(sections)
        ],
        fewest=FEWEST_TO_TELL_APART,
        split_titles=SPLIT_TITLES,
        plotlyjs=get_plotlyjs(),
        **shown,
    )
    return Page(html, {section.title: json.loads(section.figure.to_json()) for section in sections})


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
