"""Error grids: the clinical zone, A (no risk) to E, of each pair of reference and forecast.

All in mg/dL, one letter per pair. Forecasts are never clipped; one below 0 falls where one of 0
does. The surveillance error grid (Klonoff et al. 2014) is not here: see docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nocturnal_kedro.errors import InputError

ZONES = ("A", "B", "C", "D", "E")
Line = tuple[tuple[float, float], ...]  # points (reference, forecast) in mg/dL

# A pair this near a line (mg/dL) lies on it. No meter reads so finely, but 0.2 r is not exact in
# binary, and 70 mg/dL that came back from mmol/L is 69.99999999999999.
SLACK = 1e-6
CHUNK = 4_096  # pairs at a time: what is worked out for them stays in the processor's cache
LONGER = 1_000  # a line that goes on does so by this many lengths of its last segment

# Clarke's lines: |p - r| within a share of r, and corners at these glucose values.
CLARKE_SHARE = 0.2
LOW, HIGH, VERY_HIGH = 70.0, 180.0, 240.0
CLARKE_ABOVE = 110.0  # upper C begins so far above the diagonal
CLARKE_FROM = 130.0  # lower C lies below the line from (130, 0) to (180, 70)
CLARKE_SLOPE = LOW / (HIGH - CLARKE_FROM)  # 1.4


@dataclass(frozen=True)
class Nested:
    """The lines A|B, B|C, … of a grid whose zones lie in one another, on either side of r = p."""

    upper: tuple[Line, ...]
    lower: tuple[Line, ...]  # each begins with a wall: two points of one reference


# Pfützner et al. 2013, J Diabetes Sci Technol 7:1275, type 1 diabetes.
PARKES = Nested(
    upper=(
        ((0, 50), (30, 50), (140, 170), (280, 380), (430, 550)),
        ((0, 60), (30, 60), (50, 80), (70, 110), (260, 550)),
        ((0, 100), (25, 100), (50, 125), (80, 215), (125, 550)),
        ((0, 150), (35, 155), (50, 550)),
    ),
    lower=(
        ((50, 0), (50, 30), (170, 145), (385, 300), (550, 450)),
        ((120, 0), (120, 30), (260, 130), (550, 250)),
        ((250, 0), (250, 40), (550, 150)),
    ),
)
# Klonoff et al. 2024, J Diabetes Sci Technol 18:1346.
DTS = Nested(
    upper=(
        ((0, 60), (50, 60), (500, 600)),
        ((0, 86.5), (50, 86.5), (347, 600)),
        ((0, 124), (50, 124), (241, 600)),
        ((0, 179), (50, 179), (167, 600)),
    ),
    lower=(
        ((62.5, 0), (62.5, 50), (600, 480)),
        ((97.5, 0), (97.5, 50), (600, 307)),
        ((153, 0), (153, 50), (600, 197)),
        ((238, 0), (238, 50), (600, 126)),
    ),
)


def clarke_zones(reference_mg_dl: np.ndarray, forecast_mg_dl: np.ndarray) -> np.ndarray:
    """Clarke error grid zone, letters A to E, of each pair in mg/dL.

    Clarke et al. 1987, Diabetes Care 10:622. With r the reference and p the forecast, in this
    order: A if |p - r| <= 0.2 r or both <= 70; E if (r <= 70 and p >= 180) or (r >= 180 and
    p <= 70); C if (r >= 70 and p >= r + 110) or (130 <= r <= 180 and p <= 1.4 r - 182); D if
    (r >= 240 or r <= 70) and 70 <= p <= 180; else B. So a line belongs to A where A has one, else
    to the worse zone. The upper C zone has no cap.
    Worked points: (100, 120) A, (100, 150) B, (100, 250) C, (50, 120) D, (60, 200) E.
    """
    return _letters("clarke_zones", _clarke, reference_mg_dl, forecast_mg_dl)


def parkes_zones(reference_mg_dl: np.ndarray, forecast_mg_dl: np.ndarray) -> np.ndarray:
    """Parkes (consensus) error grid zone for type 1 diabetes, A to E, of each pair in mg/dL.

    Parkes et al. 2000, Diabetes Care 23:1143, with the corners of Pfützner et al. 2013. A zone
    holds its own outer line: a pair on A|B is in A. The last segment of each line goes on. Below
    the diagonal there is no E.
    Worked points: (60, 40) A, (30, 55) B, (20, 65) C, (400, 80) D, (10, 160) E.
    """
    return _letters(
        "parkes_zones", lambda r, p: _nested(PARKES, r, p), reference_mg_dl, forecast_mg_dl
    )


def dts_zones(reference_mg_dl: np.ndarray, forecast_mg_dl: np.ndarray) -> np.ndarray:
    """Error grid of the Diabetes Technology Society, zones A to E, of each pair in mg/dL.

    Klonoff et al. 2024, J Diabetes Sci Technol 18:1346, which smooths the surveillance error grid
    (Klonoff et al. 2014) to straight lines. A zone holds its own outer line, as its risk scores do
    (A: 0 to 0.5, B: above 0.5 to 1.5). The last segment of each line goes on.
    Worked points: (100, 120) A, (100, 140) B, (100, 200) C, (100, 300) D, (100, 360) E.
    """
    return _letters("dts_zones", lambda r, p: _nested(DTS, r, p), reference_mg_dl, forecast_mg_dl)


def _letters(
    grid: str,
    judge: Callable[[np.ndarray, np.ndarray], np.ndarray],
    reference_mg_dl: np.ndarray,
    forecast_mg_dl: np.ndarray,
) -> np.ndarray:
    """What `judge` says of each pair, 0 for A to 4 for E, as letters."""
    reference, forecast = np.asarray(reference_mg_dl), np.asarray(forecast_mg_dl)
    if reference.shape != forecast.shape:
        raise InputError(
            f"{grid}: {reference.shape} references and {forecast.shape} forecasts are no pairs; "
            f"give arrays of one shape."
        )
    all_r, all_p = reference.ravel(), forecast.ravel()
    letters = np.empty(all_r.shape, dtype="U1")
    characters = letters.view(np.uint32)  # numpy holds a letter as its number in Unicode
    for start in range(0, len(all_r), CHUNK):
        some = slice(start, start + CHUNK)
        r, p = np.asarray(all_r[some], np.float64), np.asarray(all_p[some], np.float64)
        finite = np.isfinite(r) & np.isfinite(p)
        if not finite.all():
            where = int(np.argmin(finite))
            raise InputError(
                f"{grid}: pair {start + where} is ({r[where]:g}, {p[where]:g}), and what is not "
                f"finite has no zone; drop unobserved pairs before."
            )
        characters[some] = judge(r, p) + ord(ZONES[0])
    return letters.reshape(reference.shape)


def _clarke(r: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The published rule backwards, each zone over those that come after it."""
    r_low, r_high = r <= LOW + SLACK, r >= HIGH - SLACK
    p_low, p_high = p <= LOW + SLACK, p >= HIGH - SLACK
    error = p - r
    in_d = (r_low | (r >= VERY_HIGH - SLACK)) & (p >= LOW - SLACK) & (p <= HIGH + SLACK)
    in_c = (r >= LOW - SLACK) & (error >= CLARKE_ABOVE - SLACK)
    in_c |= (
        (r >= CLARKE_FROM - SLACK)
        & (r <= HIGH + SLACK)
        & (p <= CLARKE_SLOPE * (r - CLARKE_FROM) + SLACK)
    )
    in_e = (r_low & p_high) | (r_high & p_low)
    in_a = (np.abs(error) <= CLARKE_SHARE * r + SLACK) | (r_low & p_low)
    zone = np.ones(r.shape, np.uint8)  # B
    for number, inside in ((3, in_d), (2, in_c), (4, in_e), (0, in_a)):
        np.putmask(zone, inside, number)
    return zone


def _nested(grid: Nested, r: np.ndarray, p: np.ndarray) -> np.ndarray:
    """How many lines lie between each pair and the diagonal."""
    zone = np.zeros(r.shape, np.uint8)
    for line in grid.upper:
        zone += p > _height(line, r) + SLACK
    for line in grid.lower:
        wall, _ = line[0]
        zone += (r > wall + SLACK) & (p < _height(line[1:], r) - SLACK)
    return zone


def _height(line: Line, r: np.ndarray) -> np.ndarray:
    """The forecast at which the line passes each reference."""
    corners = np.array(_longer(line))
    return np.interp(r, corners[:, 0], corners[:, 1])


def _longer(line: Line) -> Line:
    """The line with its last segment drawn out far beyond any glucose."""
    (r0, p0), (r1, p1) = line[-2:]
    return (*line[:-1], (r0 + LONGER * (r1 - r0), p0 + LONGER * (p1 - p0)))


@dataclass(frozen=True)
class ErrorGrid:
    """A grid with its published name, its judge, and the lines between its zones."""

    title: str
    zones: Callable[[np.ndarray, np.ndarray], np.ndarray]
    lines: tuple[Line, ...]


CLARKE_LINES: tuple[Line, ...] = (
    _longer(((0, LOW), (LOW / (1 + CLARKE_SHARE), LOW), (HIGH, (1 + CLARKE_SHARE) * HIGH))),
    _longer(((LOW, 0), (LOW, (1 - CLARKE_SHARE) * LOW), (HIGH, (1 - CLARKE_SHARE) * HIGH))),
    ((LOW, (1 + CLARKE_SHARE) * LOW), (LOW, HIGH)),  # D from B, left
    _longer(((0, HIGH), (LOW, HIGH), (LOW, HIGH + CLARKE_ABOVE))),  # E from D and C
    _longer(((LOW, LOW + CLARKE_ABOVE), (HIGH, HIGH + CLARKE_ABOVE))),  # upper C from B
    ((CLARKE_FROM, 0), (HIGH, LOW)),  # lower C from B
    _longer(((HIGH, 0), (HIGH, LOW), (VERY_HIGH, LOW))),  # E from C, B and D
    _longer(((VERY_HIGH, LOW), (VERY_HIGH, HIGH), (VERY_HIGH + HIGH, HIGH))),  # D from B, right
)
GRIDS = {
    "clarke": ErrorGrid("Clarke", clarke_zones, CLARKE_LINES),
    "parkes": ErrorGrid(
        "Parkes, type 1", parkes_zones, tuple(map(_longer, PARKES.upper + PARKES.lower))
    ),
    "dts": ErrorGrid("DTS", dts_zones, tuple(map(_longer, DTS.upper + DTS.lower))),
}
