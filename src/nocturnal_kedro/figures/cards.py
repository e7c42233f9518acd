"""A night card: one person-night from one model, to be read alone."""

from __future__ import annotations

from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING

import pandas as pd

from nocturnal_kedro.figures import MODEL_COLOURS, finish, tint
from nocturnal_kedro.metrics.cards import LowTonight, NightCard, in_words
from nocturnal_kedro.metrics.events import LOWS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BLUE, VERMILION = MODEL_COLOURS[:2]
TINTS = (0.34, 0.22, 0.12)  # of the bands, narrowest first
# What 700 pixels hold, in the widest letters that a page may have.
TITLE_CHARACTERS, LINE_CHARACTERS = 76, 102
TITLE_PIXELS, LINE_PIXELS = 20, 17
FAN_PIXELS = 300
LEGEND_PIXELS, AXIS_PIXELS, EDGE_PIXELS = 46, 46, 14  # two rows of a legend
LEFT_PIXELS = 56
LOWEST_MG_DL, ONSET_MG_DL = 26.0, 33.0  # of the drawing; the bar lies under any reading


def night_card(card: NightCard) -> Figure:
    """The fan of bands over what happened, and in words under it what is said of lows, and how far
    that may be trusted.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    _draw_fan(figure, card)
    _draw_thresholds(figure, card)
    title, words = _title(card), _words(card)
    above = EDGE_PIXELS + TITLE_PIXELS * len(title) + LEGEND_PIXELS
    below = AXIS_PIXELS + LINE_PIXELS * len(words) + EDGE_PIXELS
    figure = finish(figure, height=above + FAN_PIXELS + below)
    figure.update_xaxes(**_clock_axis(card))
    highest = max(card.bands[-1].upper_mg_dl)
    if card.happened is not None:
        highest = max(highest, *(value or 0.0 for value in card.happened.glucose_mg_dl))
    figure.update_yaxes(title="mg/dL", range=[LOWEST_MG_DL, max(highest * 1.03, 200)])
    left = {
        "xref": "paper", "x": 0, "xanchor": "left", "xshift": 12 - LEFT_PIXELS,
        "yref": "paper", "align": "left", "showarrow": False, "font": {"size": 12},
    }  # fmt: skip
    figure.add_annotation(
        text="<br>".join(title), y=1, yanchor="bottom", yshift=LEGEND_PIXELS, **left
    )
    figure.add_annotation(text="<br>".join(words), y=0, yanchor="top", yshift=-AXIS_PIXELS, **left)
    return figure.update_layout(
        margin={"t": above, "b": below, "l": LEFT_PIXELS, "r": 30},
        legend={
            "y": 1.01, "yanchor": "bottom", "x": 0, "font": {"size": 11}, "traceorder": "normal",
        },
    )  # fmt: skip


def _draw_fan(figure: Figure, card: NightCard) -> None:
    """Widest band first, so that narrower ones lie on it."""
    for band, opacity in reversed(list(zip(card.bands, TINTS, strict=True))):
        widest = band is card.bands[-1]
        figure.add_scatter(
            x=[*card.minutes, *card.minutes[::-1]],
            y=[*band.lower_mg_dl, *band.upper_mg_dl[::-1]],
            fill="toself",
            fillcolor=tint(BLUE, opacity),
            line={"width": 0},
            mode="lines",
            name=f"{'central ' if widest else ''}{band.share_pct} %",
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=card.minutes,
        y=card.median_mg_dl,
        mode="lines",
        line={"color": BLUE, "width": 2.5},
        name="median",
        hovertemplate="%{y:.0f} mg/dL",
    )
    if card.happened is not None:
        figure.add_scatter(
            x=card.minutes,
            y=card.happened.glucose_mg_dl,
            mode="markers",
            marker={"size": 4, "color": "#808080"},
            name="readings",
            hovertemplate="%{y:.0f} mg/dL",
        )


def _draw_thresholds(figure: Figure, card: NightCard) -> None:
    """Range, thresholds, and when a low may begin."""
    figure.add_hrect(y0=70, y1=180, fillcolor="rgba(0,158,115,0.08)", line_width=0, layer="below")
    styles = (("dash", "bottom"), ("dot", "top"))
    for threshold, (dash, side) in zip(LOWS.values(), styles, strict=True):
        figure.add_hline(y=threshold, line={"color": VERMILION, "width": 1.2, "dash": dash})
        figure.add_annotation(
            text=f"{threshold:.0f}",
            xref="paper", x=1, xanchor="left", xshift=3, y=threshold, yanchor=side,
            showarrow=False, font={"size": 11, "color": VERMILION},
        )  # fmt: skip
    onset = card.low.onset
    if onset is not None:
        figure.add_scatter(
            x=[onset.from_minutes, onset.median_minutes, onset.to_minutes],
            y=[ONSET_MG_DL] * 3,
            mode="lines+markers",
            line={"color": VERMILION, "width": 4},
            marker={"symbol": ["line-ns", "diamond", "line-ns"], "size": [8, 10, 8]},
            name="onset of a low",
            hoverinfo="skip",
        )


def _clock_axis(card: NightCard) -> dict[str, object]:
    """Whole hours of the clock, every second one of a long night."""
    origin = pd.Timestamp(card.origin)
    last = card.minutes[-1]
    hours = pd.date_range(
        origin.ceil("h"), origin + pd.Timedelta(minutes=last), freq="2h" if last > 240 else "h"
    )
    return {
        "tickvals": [(hour - origin) / pd.Timedelta(minutes=1) for hour in hours],
        "ticktext": [f"{hour:%H:%M}" for hour in hours],
        "range": [0, last],
    }


def _title(card: NightCard) -> list[str]:
    """Whose night, and in smaller letters which model, in lines that fit."""
    origin = pd.Timestamp(card.origin)
    last = "" if card.last_mg_dl is None else f", last reading {card.last_mg_dl:.0f} mg/dL"
    whose = f"Night of {card.source}/{card.subject} from {origin:%Y-%m-%d %H:%M}{last}"
    about = f"{card.experiment}, {card.model}, {card.split}; chosen: {card.chosen}"
    return [
        *(
            f"<span style='font-size:15px'>{line}</span>"
            for line in _lines(whose, TITLE_CHARACTERS)
        ),
        *_lines(about, LINE_CHARACTERS),
    ]


def _words(card: NightCard) -> list[str]:
    """What stands under the fan, in lines that fit; a warning of both lows stands there once."""
    usual = "for this person" if card.training_nights else "for everybody"
    lines: list[str] = []
    warned: set[str] = set()
    for low in (card.low, card.very_low):
        head = f"Below {low.below_mg_dl:.0f} mg/dL tonight: {low.words}."
        if low.usual_share is not None:
            head += f" Usual {usual}: {in_words(low.usual_share)}."
        warnings = [warning for warning in low.reliability.warnings if warning not in warned]
        warned.update(warnings)
        trust = " ".join((low.reliability.words, *warnings))
        lines += [f"<b>{line}</b>" for line in _lines(head, LINE_CHARACTERS - 10)]
        lines += [*_lines(_when(low)), *_lines(trust), ""]
    if card.happened is not None:
        lines += [*_lines(_what_happened(card)), ""]
    return [*lines, *(f"<i>{line}</i>" for line in _lines(card.disclaimer))]


def _when(low: LowTonight) -> str:
    parts = []
    if low.onset is not None:
        parts.append(
            f"If so, it would begin around {low.onset.median_clock} (8 in 10 times between "
            f"{low.onset.from_clock} and {low.onset.to_clock})."
        )
    parts.append(f"Minutes expected below: {low.expected_minutes:.0f}.")
    if low.alarm_threshold is not None:
        rings = "rings" if low.alarm_rings else "does not ring"
        parts.append(
            f"The alarm of at most one false ring a week, from {100 * low.alarm_threshold:.0f} % "
            f"on, {rings}."
        )
    return " ".join(parts)


def _what_happened(card: NightCard) -> str:
    assert card.happened is not None
    parts = []
    for low, came in (("70", card.happened.low), ("54", card.happened.very_low)):
        if came.event and came.onset_minutes is not None:
            begins = pd.Timestamp(card.origin) + pd.Timedelta(minutes=came.onset_minutes)
            parts.append(f"below {low} from {begins:%H:%M}, {came.minutes} min of the night")
        else:
            parts.append(f"not below {low} for 15 minutes")
    return (
        f"What happened: {'; '.join(parts)}; lowest reading {card.happened.lowest_mg_dl:.0f} mg/dL."
    )


def _lines(text: str, characters: int = LINE_CHARACTERS) -> list[str]:
    """Wrapped, each number together with its percent sign."""
    return [escape(line) for line in wrap(text.replace(" %", "\u00a0%"), characters)]
