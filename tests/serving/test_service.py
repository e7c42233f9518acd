"""The service by its own protocol: what it answers, what it refuses and how, and what it keeps."""

import copy
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from nocturnal_kedro.errors import InputError, validated
from nocturnal_kedro.metrics.cards import DISCLAIMER
from nocturnal_kedro.serving import service
from nocturnal_kedro.serving.readings import Recent
from nocturnal_kedro.serving.service import MOST_BYTES, make_app
from nocturnal_kedro.serving.tonight import About, Served, forecast_tonight
from nocturnal_kedro.training.artifact import Artifact
from tests.serving.conftest import Cohort, ask

Asked = dict[str, Any]
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(ttm: Artifact, about: About) -> TestClient:
    return TestClient(make_app(ttm, about))


@pytest.fixture(scope="module")
def asked(cohort: Cohort) -> Asked:
    return ask(cohort, cohort.night(), days=1.3)


def test_it_says_over_http_what_is_told_in_python(
    client: TestClient, served: Served, asked: Asked
) -> None:
    answer = client.post("/forecast", json=asked)
    told = forecast_tonight(served, validated(Recent, asked, "request"))
    assert answer.status_code == 200
    assert answer.json() == told.model_dump(mode="json")
    assert answer.content == client.post("/forecast", json=asked).content


def test_it_tells_what_answers(client: TestClient, ttm: Artifact) -> None:
    version = client.get("/version").json()
    assert version["model_id"] == "nocturnal_point/3"
    assert version["data"] == ttm.record["data"]
    assert version["people"] == len(ttm.people) == 6
    assert client.get("/health").json()["status"] == "ready"


def test_every_answer_says_that_it_is_no_medical_device(client: TestClient, asked: Asked) -> None:
    described = client.get("/openapi.json").json()
    assert "not a medical device" in described["info"]["description"]
    for path, operations in described["paths"].items():
        for method in operations:
            for body in (asked, {}):
                answer = client.request(method, path, json=body).json()
                assert "not a medical device" in answer["disclaimer"], path
    assert DISCLAIMER in client.get("/nowhere").text
    assert DISCLAIMER in client.delete("/forecast").text


def last_row(**changes: object) -> Callable[[Asked], None]:
    return lambda asked: asked["readings"][-1].update(changes)


def swap_rows(asked: Asked) -> None:
    asked["readings"][3:5] = asked["readings"][4:2:-1]


def repeat_row(asked: Asked) -> None:
    asked["readings"].insert(3, asked["readings"][3])


def without_newest(hours: float) -> Callable[[Asked], None]:
    def change(asked: Asked) -> None:
        until = pd.Timestamp(asked["origin"]) - pd.Timedelta(hours=hours)
        asked["readings"] = [r for r in asked["readings"] if pd.Timestamp(r["time"]) <= until]

    return change


def only_newest(rows: int) -> Callable[[Asked], None]:
    def change(asked: Asked) -> None:
        asked["readings"] = asked["readings"][-rows:]

    return change


def thin_out(asked: Asked) -> None:
    asked["readings"] = asked["readings"][:200:9] + asked["readings"][200:]


def all_glucose(factor: float) -> Callable[[Asked], None]:
    def change(asked: Asked) -> None:
        for row in asked["readings"]:
            if "glucose" in row:
                row["glucose"] *= factor

    return change


REFUSED: dict[str, tuple[Callable[[Asked], Any], str]] = {
    "no readings": (lambda a: a.update(readings=[]), "readings: Tuple should have at least 1"),
    "no origin": (lambda a: a.pop("origin"), "origin: Field required"),
    "no unit": (lambda a: a.pop("unit"), "unit: Field required"),
    "a unit of its own": (lambda a: a.update(unit="mg"), "unit: Input should be 'mg/dL'"),
    "a field of its own": (last_row(insulin=3), "insulin: Extra inputs are not permitted"),
    "the other unit": (lambda a: a.update(unit="mmol/L"), "looks like mg/dL. Correct the unit"),
    "mmol in mg": (all_glucose(1 / 18), "looks like mmol/L. Correct the unit"),
    "no time": (last_row(time=None), "is no time in ISO 8601"),
    "a number as time": (last_row(time=1767225600), "is no time in ISO 8601"),
    "a date alone": (last_row(time="2024-01-02"), "is no time in ISO 8601"),
    "no such day": (last_row(time="2023-02-30T10:00:00"), "is no time in ISO 8601"),
    "a time long ago": (last_row(time="1066-10-14T10:00:00"), "outside of the years"),
    "an offset": (last_row(time="2024-01-01T10:00:00+01:00"), "Give zone, an IANA name"),
    "no offset": (lambda a: a.update(zone="Europe/London"), "Give offsets, or leave zone out"),
    "origin off the grid": (
        lambda a: a.update(origin=a["origin"].replace(":00:00", ":03:00")),
        "not on the 5-minute grid. Give",
    ),
    "unsorted": (swap_rows, "readings.4.time"),
    "twice": (repeat_row, "put what is of one moment into one row"),
    "after the origin": (without_newest(-1), ""),  # nothing to leave out: the request is good
    "to come": (
        lambda a: a.update(
            origin=(pd.Timestamp(a["origin"]) - pd.Timedelta(hours=2)).isoformat()
        ),
        "Leave out what comes after it",
    ),
    "a gap at the origin": (without_newest(2), "minutes older than the origin"),
    "too short": (only_newest(100), "24 hours before the origin"),
    "too few": (thin_out, "% of the 24 hours before the origin have a glucose reading"),
    "no glucose": (
        lambda a: a.update(readings=[{"time": "2024-01-01T10:00:00", "bolus_u": 1}]),
        "no row has a glucose",
    ),
    "glucose of no sensor": (last_row(glucose=2000), "out of any sensor's range, 10 to 1000"),
    "glucose below zero": (last_row(glucose=-5), "out of any sensor's range"),
    "glucose in words": (last_row(glucose="120"), "glucose.float: Input should be a valid number"),
    "glucose true": (last_row(glucose=True), "Input should be a valid number"),
    "a bolus of 300": (last_row(bolus_u=300), "bolus_u: Input should be less than or equal to 100"),
    "carbs below 0": (last_row(carbs_g=-1), "carbs_g: Input should be greater than or equal to 0"),
    "a rate without end": (last_row(basal_u_h=1, basal_minutes=None), "without basal_minutes"),
    "a month ago": (
        lambda a: a["readings"].insert(0, {"time": "2023-10-01T00:00:00", "glucose": 100}),
        "Leave older rows out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_used_is_refused_with_what_to_do(
    what: str, client: TestClient, asked: Asked
) -> None:
    change, words = REFUSED[what]
    changed = copy.deepcopy(asked)
    change(changed)
    answer = client.post("/forecast", json=changed)
    assert answer.status_code == (422 if words else 200), answer.text
    assert words in answer.json().get("detail", "")


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", JSON, 422),
        (b"{", JSON, 422),
        (b'"\xff"', JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b'{"origin":' * 3000, JSON, 400),
        (b"1" * 10_000, JSON, 400),
        (b'{"readings": [{"glucose": NaN}]}', JSON, 422),
        (b'{"readings": [{"glucose": 1e999}]}', JSON, 422),
        (b'{"zone": "\\ud800"}', JSON, 422),
        (b'{"\\ud800": 1}', JSON, 422),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {}, 415),
        (b"{}" + b" " * MOST_BYTES, JSON, 413),
    ],
)
def test_a_body_that_is_no_request_is_refused(
    body: bytes, headers: dict[str, str], status: int, client: TestClient
) -> None:
    answer = client.post("/forecast", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["disclaimer"] == DISCLAIMER


def test_a_body_without_a_length_is_cut_off_where_it_is_too_long(client: TestClient) -> None:
    pieces = (b" " * 2**16 for _ in range(MOST_BYTES // 2**16 + 1))
    answer = client.post("/forecast", content=pieces, headers=JSON)
    assert answer.status_code == 413
    small = client.post("/forecast", content=iter([b"{", b"}"]), headers=JSON)
    assert small.status_code == 422  # read whole, and no request


def test_who_comes_when_too_many_are_held_is_told_so(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.get("/health").status_code == 200
    monkeypatch.setattr(service, "MOST_AT_ONCE", 0)
    assert client.get("/health").status_code == 503


def test_many_at_once_get_what_each_gets_alone(client: TestClient, cohort: Cohort) -> None:
    nights = cohort.data.origins[cohort.data.origins["split"] == "patient"].iloc[3:7]
    requests = [ask(cohort, night, days=1.3) for _, night in nights.iterrows()]
    alone = [client.post("/forecast", json=request).content for request in requests]
    assert len(set(alone)) == 4
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda r: client.post("/forecast", json=r).content, requests * 3))
    assert together == alone * 3


def test_no_reading_is_logged_even_where_the_service_is_at_fault(
    ttm: Artifact,
    about: About,
    asked: Asked,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fault(served: Served, recent: Recent) -> None:
        raise ValueError(f"nobody thought of {recent.readings[0].glucose}")

    client = TestClient(make_app(ttm, about))
    caplog.set_level(logging.DEBUG)
    asked = asked | {"readings": [{"time": "2024-01-01T00:00:00", "glucose": 123.4567}]}
    assert client.post("/forecast", json=asked).status_code == 422
    monkeypatch.setattr(service, "forecast_tonight", fault)
    answer = client.post("/forecast", json=asked)
    assert answer.status_code == 500
    assert "ValueError" in caplog.text
    assert "in fault" in caplog.text  # where it was
    assert "123.4567" not in caplog.text + answer.text


def test_the_hour_that_a_clock_shows_twice_is_told_by_offsets(
    client: TestClient, asked: Asked
) -> None:
    # The record ends at 23:00 of the day on which London's clocks are put back at 01:00 UTC.
    moved = pd.Timestamp("2024-10-27T23:00:00") - pd.Timestamp(asked["origin"])

    def utc(time: str) -> pd.Timestamp:
        return (pd.Timestamp(time) + moved).tz_localize("UTC")

    def moved_to(form: Callable[[pd.Timestamp], str]) -> Asked:
        rows = [row | {"time": form(utc(row["time"]))} for row in asked["readings"]]
        return asked | {"origin": form(utc(asked["origin"])), "readings": rows}

    shown = moved_to(lambda t: t.tz_convert("Europe/London").tz_localize(None).isoformat())
    refused = client.post("/forecast", json=shown)
    assert refused.status_code == 422
    assert "where a clock was put back, give times with their offsets" in refused.json()["detail"]

    zoned = moved_to(lambda t: t.isoformat()) | {"zone": "Europe/London"}
    told = client.post("/forecast", json=zoned)
    assert told.status_code == 200, told.text
    assert told.json()["origin"] == "2024-10-27T23:00:00"
    assert any("that a clock change repeats" in row["reason"] for row in told.json()["account"])
    unknown = client.post("/forecast", json=zoned | {"zone": "Europe/Londn"})
    assert "Did you mean 'Europe/London'?" in unknown.json()["detail"]


def test_what_serving_needs_is_named_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "nocturnal-kedro\[serving\]"'):
        service.require_serving()


# What a careless or a hostile client may send in place of anything.
NUMBERS = st.one_of(
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.sampled_from([0, -0.0, 1e-320, 1e308, 2**63, 54, 69.9, 400, 401, 1000]),
)
TIMES = st.one_of(
    st.datetimes(pd.Timestamp(1900, 1, 1), pd.Timestamp(2300, 1, 1)).map(lambda t: t.isoformat()),
    st.sampled_from(
        ["2024-03-31T01:30:00", "2024-10-27T01:30:00+01:00", "2024-10-27T01:30:00Z", "24:00",
         "2024-01-05T00:00:00+23:59", "0000-00-00T00:00:00", "２０２４-01-01T00:00"]
    ),
)  # fmt: skip
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TIMES, st.text(max_size=30), st.sampled_from(
    ["LOW", "HIGH", "mg/dL", "mmol/L", "Europe/London", "UTC", "../../etc/passwd", "\x00", "\ud800"]
))  # fmt: skip
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=8,
)
FIELDS = [*Recent.model_fields, "other"]
ROW_FIELDS = ["time", "glucose", "bolus_u", "basal_u_h", "basal_minutes", "carbs_g", "steps"]


@st.composite
def mistakes(draw: st.DrawFn) -> Callable[[Asked], None]:
    """One thing done to a good request."""
    kind = draw(st.sampled_from(["field", "row", "rows", "drop", "double", "origin", "zone"]))
    row, number, value = draw(st.integers(0, 380)), draw(st.integers(1, 100)), draw(ANYTHING)
    field, row_field = draw(st.sampled_from(FIELDS)), draw(st.sampled_from(ROW_FIELDS))
    time, zone = draw(TIMES), draw(st.sampled_from(["Europe/London", "Asia/Kolkata", "UTC"]))

    def mistake(asked: Asked) -> None:
        rows = asked["readings"]
        if kind == "origin":
            asked["origin"] = time
        elif kind == "field" or not isinstance(rows, list) or not rows:
            asked[field] = value
        elif kind == "row" and isinstance(rows[row % len(rows)], dict):
            rows[row % len(rows)][row_field] = value
        elif kind == "drop":
            del rows[row % len(rows) : row % len(rows) + number]
        elif kind == "double":
            rows.insert(row % len(rows), copy.deepcopy(rows[row % len(rows)]))
        elif kind == "zone":
            asked["zone"] = zone
            for of in [asked, *(r for r in rows if isinstance(r, dict))]:
                name = "origin" if of is asked else "time"
                if isinstance(of.get(name), str):
                    of[name] += "+00:00"
        else:
            rows[row % len(rows)] = value

    return mistake


@pytest.mark.slow
@settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.one_of(st.lists(mistakes(), min_size=1, max_size=3), ANYTHING, st.binary(max_size=200)),
    st.sampled_from([JSON, {"content-type": "application/json; charset=utf-16"}]),
)
def test_nothing_that_is_sent_is_the_services_fault(
    client: TestClient, asked: Asked, sent: Any, headers: dict[str, str]
) -> None:
    if isinstance(sent, list) and sent and callable(sent[0]):
        body = copy.deepcopy(asked)
        for mistake in sent:
            mistake(body)
        content = json.dumps(body).encode()
    else:
        content = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    answer = client.post("/forecast", content=content, headers=headers)
    event(f"status {answer.status_code}")
    assert answer.status_code < 500, answer.text
    assert answer.json()["disclaimer"] == DISCLAIMER
    if answer.status_code == 200:
        levels = np.array(answer.json()["quantiles_mg_dl"])
        assert np.isfinite(levels).all()
        assert (np.diff(levels, axis=1) >= 0).all()
        assert 0 <= answer.json()["low_probability"] <= 1
