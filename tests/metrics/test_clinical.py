"""Error grids against golden points, two libraries, and what the papers say of them."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics import clinical
from nocturnal_kedro.metrics.clinical import (
    DTS,
    GRIDS,
    ZONES,
    Line,
    clarke_zones,
    dts_zones,
    parkes_zones,
)
from nocturnal_kedro.series.schema import MG_DL_PER_MMOL_L

Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]
GOLDEN = {
    "clarke": {
        "A": [(100, 100), (60, 60), (200, 235), (200, 165), (70, 50), (100, 120)],
        "B": [(100, 150), (300, 200), (150, 110)],
        "C": [(100, 250), (160, 20), (175, 45), (300, 450)],
        "D": [(50, 120), (65, 100), (260, 120), (350, 150), (240, 180)],
        "E": [(60, 200), (200, 50), (69, 181), (70, 180), (180, 70)],
    },
    "parkes": {
        "A": [(100, 100), (300, 300), (60, 40)],
        "B": [(100, 150), (30, 55), (300, 410), (291, 395), (450, 355)],
        "C": [(20, 65), (40, 90), (80, 180), (150, 40), (300, 140), (450, 120)],
        "D": [(20, 110), (40, 130), (60, 250), (300, 40), (400, 80)],
        "E": [(10, 160), (30, 300), (45, 500)],
    },
    "dts": {  # by hand: at 100 the lines pass 120, 172.9, 248.6, 358.9 and 80, 51.3
        "A": [(100, 120), (100, 81), (62, 0), (30, 59), (550, 620)],
        "B": [(100, 121), (100, 172), (100, 79), (100, 52), (97, 0), (30, 61), (550, 700)],
        "C": [(100, 174), (100, 248), (100, 51), (152, 0), (30, 87)],
        "D": [(100, 249), (100, 358), (237, 0), (300, 65), (30, 178)],
        "E": [(100, 360), (239, 0), (300, 62), (30, 180)],
    },
}  # fmt: skip
GLUCOSE = st.one_of(st.floats(1, 700), st.integers(2, 1400).map(lambda twice: twice / 2))


def one(judge: Judge, r: float, p: float) -> str:
    return str(judge(np.array([r]), np.array([p]))[0])


@pytest.mark.parametrize(("grid", "zone"), [(grid, zone) for grid in GRIDS for zone in ZONES])
def test_golden_points(grid: str, zone: str) -> None:
    reference, forecast = np.array(GOLDEN[grid][zone], float).T
    assert GRIDS[grid].zones(reference, forecast).tolist() == [zone] * len(reference)


@given(st.floats(20, 600), st.floats(0, 600))
def test_clarke_follows_the_published_order(r: float, p: float) -> None:
    """The rule read aloud, one point at a time."""
    if off_lines("clarke", np.array([r]), np.array([p]))[0] < 1e-5:
        return  # on the line to the last bit
    if abs(p - r) <= 0.2 * r or (r <= 70 and p <= 70):
        expected = "A"
    elif (r <= 70 and p >= 180) or (r >= 180 and p <= 70):
        expected = "E"
    elif (r >= 70 and p >= r + 110) or (130 <= r <= 180 and p <= 1.4 * r - 182):
        expected = "C"
    elif (r >= 240 or r <= 70) and 70 <= p <= 180:
        expected = "D"
    else:
        expected = "B"
    assert one(clarke_zones, r, p) == expected


def test_dts_lines_belong_to_the_zone_within() -> None:
    """On every corner of the published table lies the better zone, just beyond it the worse one."""
    for side, away in ((DTS.upper, 1.0), (DTS.lower, -1.0)):
        for number, line in enumerate(side):
            r, p = np.array(line, float).T
            assert set(dts_zones(r, p)) == {ZONES[number]}
            beyond = dts_zones(r[-1:] - away * 0.01, p[-1:] + away * 0.01)
            assert beyond.tolist() == [ZONES[number + 1]]


# -- independent libraries --------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    """100,000 anywhere, and a lattice that holds many points of many lines."""
    random = np.random.default_rng(0)
    r, p = random.uniform(1, 600, 100_000), random.uniform(0, 700, 100_000)
    lattice = np.mgrid[5:601:5, 0:701:5].reshape(2, -1).astype(float)
    return np.append(r, lattice[0]), np.append(p, lattice[1])


def test_clarke_against_methcomp(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    """methcomp has strict `<` and `>` at most edges: it differs on lines alone."""
    from methcomp import clarkezones

    ours, theirs = clarke_zones(*pairs), np.array(clarkezones(*pairs, "mgdl"))
    assert (off_lines("clarke", *pairs)[ours != theirs] < 1e-6).all()


def test_clarke_against_error_grids(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    """error-grids caps the upper C zone at a reference of 290, and its A has strict edges."""
    from error_grids import clarke_error_zone_detailed

    r, p = pairs
    ours, theirs = clarke_zones(r, p), np.array(list("ABBCCDDEE"))[clarke_error_zone_detailed(r, p)]
    capped = (r > 290) & (p >= r + 110) & (ours == "C") & (theirs == "B")
    edges = (off_lines("clarke", r, p) < 1e-6) & (ours == "A")
    assert (capped | edges)[ours != theirs].all()
    assert capped.any()


def test_parkes_against_error_grids(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    """error-grids gives a line to the zone beyond it. It also wants a B to be beyond the segment
    before a bend drawn out, so between that and A|B, after the bends at 280 and 385, it has A.
    """
    from error_grids import parkes_error_zone_detailed

    r, p = pairs
    ours, theirs = (
        parkes_zones(r, p),
        np.array(list("ABBCCDDE"))[parkes_error_zone_detailed(r, p, 1)],
    )
    above = (r > 280) & (p < 380 + (r - 280) * 210 / 140)
    below = (r > 385) & (p > 300 + (r - 385) * 155 / 215)
    drawn_out = (above | below) & (ours == "B") & (theirs == "A")
    lines = off_lines("parkes", r, p) < 1e-6
    assert (drawn_out | lines)[ours != theirs].all()
    assert drawn_out.any()


@pytest.mark.slow
def test_parkes_against_methcomp(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    """methcomp draws the lower C|D line to a corner of type 2, 11 mg/dL above that of type 1, so
    between the two it has D. Its polygons do not hold their own edges, forecasts of 0 among them.
    """
    from methcomp import parkeszones

    r, p = pairs
    ours, theirs = parkes_zones(r, p), np.array(parkeszones(1, r, p, "mgdl"))
    right = r.max() + 20  # where its drawing ends
    top = 110 + (right - 410) * 110 / 300
    wide = (r > 250) & (p < 40 + (r - 250) * (top - 40) / (right - 250) + 1e-6)
    wide &= (ours == "C") & (theirs == "D")
    edges = (off_lines("parkes", r, p) < 1e-6) | ((p == 0) & (theirs == "A"))
    assert (wide | edges)[ours != theirs].all()
    assert wide.any()


def test_dts_against_its_risk_function(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    """The paper's risk is 2.75 ln(p/r) above and 2.25 ln(r/p) below the diagonal, both values
    raised to 50, with zones up to 0.5, 1.5, 2.5 and 3.5; its straight lines are that function
    rounded, by at most 1.2 mg/dL. No package of the index has this grid.
    """
    r, p = pairs
    ratio = np.log(np.maximum(p, 50) / np.maximum(r, 50))
    risk = np.where(ratio > 0, 2.75, -2.25) * ratio
    theirs = np.array(ZONES)[np.searchsorted([0.5, 1.5, 2.5, 3.5], risk)]
    differ = dts_zones(r, p) != theirs
    assert (off_lines("dts", r, p)[differ] <= 1.2).all()
    assert differ.mean() < 0.01


# -- what holds everywhere --------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
@given(reference=GLUCOSE)
def test_a_perfect_forecast_is_in_a(grid: str, reference: float) -> None:
    assert one(GRIDS[grid].zones, reference, reference) == "A"


@pytest.mark.parametrize("grid", GRIDS)
@given(reference=GLUCOSE, near=GLUCOSE, far=GLUCOSE)
def test_no_forecast_gets_better_by_going_further(
    grid: str, reference: float, near: float, far: float
) -> None:
    """At one reference, away from it on one side: Clarke's letters too only get worse."""
    near, far = sorted((near, far), key=lambda p: abs(p - reference))
    if (near - reference) * (far - reference) >= 0:
        assert one(GRIDS[grid].zones, reference, near) <= one(GRIDS[grid].zones, reference, far)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_way_through_mmol_changes_no_letter(
    grid: str, pairs: tuple[np.ndarray, np.ndarray]
) -> None:
    """Nor for the lattice's pairs on a line, of which many come back beside it by a last bit."""
    back = [values / MG_DL_PER_MMOL_L * MG_DL_PER_MMOL_L for values in pairs]
    np.testing.assert_array_equal(GRIDS[grid].zones(*back), GRIDS[grid].zones(*pairs))


@pytest.mark.parametrize("grid", GRIDS)
def test_a_forecast_below_0_falls_where_one_of_0_does(grid: str) -> None:
    r = np.arange(1.0, 601)
    zones = GRIDS[grid].zones
    np.testing.assert_array_equal(zones(r, np.full(600, -30.0)), zones(r, np.zeros(600)))


@pytest.mark.parametrize("grid", GRIDS)
def test_pairs_are_judged_one_by_one(grid: str, pairs: tuple[np.ndarray, np.ndarray]) -> None:
    """Neither the part in which a pair is judged, nor shape and type, change its letter."""
    judge, order = GRIDS[grid].zones, np.random.default_rng(1).permutation(len(pairs[0]))
    together = judge(*pairs)
    np.testing.assert_array_equal(judge(pairs[0][order], pairs[1][order]), together[order])
    whole = tuple(np.round(values[: 2 * 5000]).astype(int).reshape(2, 5000) for values in pairs)
    np.testing.assert_array_equal(
        judge(*whole), [judge(*(v[i] * 1.0 for v in whole)) for i in (0, 1)]
    )
    assert judge(np.array([]), np.array([])).shape == (0,)


@pytest.mark.parametrize("grid", GRIDS)
def test_what_is_no_pair_is_refused(grid: str) -> None:
    judge = GRIDS[grid].zones
    r, p = np.full(clinical.CHUNK + 5, 100.0), np.full(clinical.CHUNK + 5, 90.0)
    for wrong in (np.nan, np.inf):
        p[-2] = wrong
        with pytest.raises(InputError, match=rf"{grid}_zones: pair {clinical.CHUNK + 3} is \(100"):
            judge(r, p)
    with pytest.raises(InputError, match="no pairs"):
        judge(r[:, None], r)


# -- the lines that figures draw --------------------------------------------------------------


def segments(lines: tuple[Line, ...]) -> np.ndarray:
    """Both ends (reference, forecast) of every straight piece."""
    return np.array([ends for line in lines for ends in itertools.pairwise(line)], float)


def off_lines(grid: str, r: np.ndarray, p: np.ndarray) -> np.ndarray:
    """How far in mg/dL each pair lies from the nearest drawn line."""
    nearest = np.full(r.shape, np.inf)
    for (r0, p0), (r1, p1) in segments(GRIDS[grid].lines):
        length = np.hypot(r1 - r0, p1 - p0)
        along = np.clip(((r - r0) * (r1 - r0) + (p - p0) * (p1 - p0)) / length**2, 0, 1)
        away = np.hypot(r - r0 - along * (r1 - r0), p - p0 - along * (p1 - p0))
        nearest = np.minimum(nearest, away)
    return nearest


@pytest.mark.parametrize("grid", GRIDS)
def test_zones_change_across_every_line(grid: str) -> None:
    """Beside every segment within 600 mg/dL lies one zone on the left, another on the right."""
    for start, end in segments(GRIDS[grid].lines):
        inside = min(1.0, *(600 / end[end > 0]))
        middle = start + (end - start) * inside / 2
        across = np.array([start[1] - end[1], end[0] - start[0]]) / np.hypot(*(end - start)) / 4
        left, right = (one(GRIDS[grid].zones, *(middle + side * across)) for side in (1, -1))
        assert left != right, (start, end)


@pytest.mark.parametrize("grid", GRIDS)
def test_zones_change_nowhere_but_at_a_line(grid: str) -> None:
    r, p = np.mgrid[0.5:600, 0.5:600]
    zones = GRIDS[grid].zones(r, p)
    sideways, upwards = zones[1:] != zones[:-1], zones[:, 1:] != zones[:, :-1]
    assert off_lines(grid, r[1:][sideways] - 0.5, p[1:][sideways]).max() <= 0.5
    assert off_lines(grid, r[:, 1:][upwards], p[:, 1:][upwards] - 0.5).max() <= 0.5
