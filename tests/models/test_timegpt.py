"""TimeGPT, asked through its own client at a server of this machine."""

import logging
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.forecasts import QUANTILES
from nocturnal_kedro.models import MEDIAN, timegpt
from nocturnal_kedro.series.nights import Nights
from nocturnal_kedro.series.origins import origin_rows
from nocturnal_kedro.series.physiology import ACTIONS
from nocturnal_kedro.series.schema import QUANTILE_LEVELS
from nocturnal_kedro.training.artifact import save_artifact
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import Kept, fit_model
from nocturnal_kedro.training.forecast import forecast
from nocturnal_kedro.training.options import Training
from tests.conftest import PROJECT
from tests.models._timegpt_server import KEY, SLOPE, Fault, Server

CONSENT = {"people_data_may_leave_this_machine": True}
HORIZON = 96
STEPS = 288


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NIXTLA_API_KEY", KEY)
    monkeypatch.setattr(timegpt, "FIRST_WAIT_S", 0.01)
    with Server().running() as running:
        yield running


def options(server: Server, **given: Any) -> timegpt.Options:
    return timegpt.Options.model_validate(CONSENT | {"base_url": server.url} | given)


def invent_nights(count: int, steps: int = STEPS, seed: int = 0) -> Nights:
    """Glucose that ends differently each night; insulin, carbs and their decay."""
    draw = np.random.default_rng(seed)
    shape = {"past": (count, steps), "ahead": (count, HORIZON)}
    glucose_NL = draw.uniform(70, 250, (count, steps)).astype(np.float32).astype(float)
    names = (*ACTIONS, "insulin_u", "carbs_g", "steps", "heart_rate")
    return Nights(
        glucose_NL=glucose_NL,
        past={name: draw.uniform(1, 5, shape["past"]) for name in names},
        ahead={name: draw.uniform(0, 1, shape["ahead"]) for name in ACTIONS},
        person_N=np.zeros(count, int),
        slot_of_day_N=np.full(count, 0),
        horizon=HORIZON,
    )


def expected(nights: Nights) -> np.ndarray:
    """The server's points, (N, H)."""
    return nights.glucose_NL[:, -1:] + SLOPE * np.arange(1, HORIZON + 1)


def damage(key: str, answers: dict[str, bytes], how: str) -> None:
    stored = answers[key]
    answers[key] = {
        "bit": stored[:100] + bytes([stored[100] ^ 1]) + stored[101:],
        "cut": stored[:-4],
        "empty": b"",
        "other": b"no answer at all" * 400,
    }[how]


def refused(
    nights: Nights, given: timegpt.Options, answers: dict[str, bytes] | None = None
) -> InputError:
    with pytest.raises(InputError) as caught:
        timegpt.answer(nights, given, {} if answers is None else answers)
    return caught.value


def test_every_level_is_read_from_its_own_interval_and_quantiles_ascend(server: Server) -> None:
    nights = invent_nights(5)
    answer = timegpt.answer(nights, options(server, batch=2), {})
    assert answer.quantiles_NHQ is not None
    assert answer.point_NH.shape == (5, HORIZON)
    assert answer.quantiles_NHQ.shape == (5, HORIZON, len(QUANTILE_LEVELS))
    assert (np.diff(answer.quantiles_NHQ) > 0).all()
    np.testing.assert_allclose(answer.point_NH, expected(nights), atol=1e-4)
    # The server's interval of level c reaches 25 c to either side: quantile p lies at 50 p - 25.
    offset_Q = 50 * np.array(QUANTILE_LEVELS) - 25
    np.testing.assert_allclose(
        answer.quantiles_NHQ, expected(nights)[..., None] + offset_Q, atol=1e-3
    )
    [level] = {tuple(asked.body["level"]) for asked in server.forecasts}
    assert sorted(level) == [10, 20, 30, 40, 50, 60, 70, 80, 90, 98]


def test_crossing_quantiles_are_sorted(server: Server) -> None:
    def cross(right: dict[str, Any]) -> None:
        held = right["intervals"]
        held["lo-98"], held["lo-10"] = held["lo-10"], held["lo-98"]

    server.faults.append(Fault(edit=cross))
    answer = timegpt.answer(invent_nights(2), options(server), {})
    assert answer.quantiles_NHQ is not None
    assert (np.diff(answer.quantiles_NHQ) >= 0).all()


def test_nights_are_asked_in_batches_and_the_model_is_looked_up_once(server: Server) -> None:
    nights = invent_nights(70)
    answer = timegpt.answer(nights, options(server), {})
    assert [len(asked.body["series"]["sizes"]) for asked in server.forecasts] == [32, 32, 6]
    np.testing.assert_allclose(answer.point_NH, expected(nights), atol=1e-4)
    [lookup] = [asked for asked in server.asked if asked.method == "GET"]
    assert lookup.path == "/model_params?model=timegpt-1-long-horizon&freq=5min"


def test_a_large_batch_travels_compressed(server: Server) -> None:
    nights = invent_nights(300, steps=512)
    answer = timegpt.answer(nights, options(server, batch=300), {})
    [asked] = server.forecasts
    assert {name.lower(): value for name, value in asked.headers.items()}[
        "content-encoding"
    ] == "zstd"
    np.testing.assert_allclose(answer.point_NH, expected(nights), atol=1e-4)


def test_only_glucose_and_sizes_are_sent_without_covariates(server: Server) -> None:
    nights = invent_nights(2)
    timegpt.answer(nights, options(server), {})
    [asked] = server.forecasts
    series = asked.body["series"]
    assert {name for name, value in series.items() if value is not None} <= {
        "y",
        "sizes",
        "start_datetime",  # by client 0.9
    }
    np.testing.assert_allclose(series["y"], nights.glucose_NL.ravel(), rtol=1e-6)
    assert set(asked.body) <= {
        "series", "model", "h", "freq", "clean_ex_first", "level", "finetune_steps",
        "finetune_depth", "finetune_loss", "finetuned_model_id", "feature_contributions",
        "multivariate",
    }  # fmt: skip
    assert asked.body["finetune_steps"] == 0


def test_no_name_no_source_and_no_date_of_anybody_is_sent(data: Data, server: Server) -> None:
    given = CONSENT | {"base_url": server.url, "covariates": ("iob_u", "clock")}
    fit_model("timegpt", given, data, Training(), kept=Kept(answers={}))
    assert server.nights == len(data.night_rows("validation"))
    names = set(data.corpus.people["subject"]) | set(data.corpus.people["source"])
    secret = re.compile("|".join([*names, *map(str, set(data.origins["origin"].dt.year))]))
    assert secret.search("invented/p3")
    assert secret.search("2026-01-19")
    for asked in server.asked:
        assert asked.headers.pop("Authorization") == f"Bearer {KEY}"
        told = [asked.path, *asked.headers, *asked.headers.values(), *texts(asked.body)]
        assert not [text for text in told if secret.search(text)]
    for asked in server.forecasts:
        series = asked.body["series"]
        assert set(series) <= {"y", "sizes", "X", "X_future", "start_datetime"}
        starts = series.get("start_datetime", [])  # by client 0.9
        assert all(start.startswith(("1999-12-3", "2000-01-01")) for start in starts)
        assert len(series["X"]) == 3  # insulin on board, sine and cosine of the clock


def texts(body: Any) -> Iterator[str]:
    """Every text in it, names of fields too."""
    if isinstance(body, dict):
        for name, value in body.items():
            yield name
            yield from texts(value)
    elif isinstance(body, list):
        for value in body:
            yield from texts(value)
    elif isinstance(body, str):
        yield body


def test_covariates_are_sent_with_the_future_that_is_known(server: Server) -> None:
    nights = invent_nights(2)
    nights.slot_of_day_N[:] = [0, 282]  # midnight and 23:30
    nights.past["cob_g"][1] = np.nan  # never on record that night
    nights.past["insulin_activity_u_h"][0, :40] = np.nan
    nights.ahead["insulin_activity_u_h"][0] = np.nan  # unknown at the origin
    asked_for = ("iob_u", "cob_g", "insulin_activity_u_h", "clock", "heart_rate")
    timegpt.answer(nights, options(server, covariates=asked_for), {})
    first, second = (asked.body["series"] for asked in server.forecasts)

    # Known ahead first, then history alone: the order of the client.
    assert len(first["X"]) == 6
    assert len(first["X_future"]) == 4
    np.testing.assert_allclose(first["X"][0], nights.past["iob_u"][0], rtol=1e-6)
    np.testing.assert_allclose(first["X_future"][0], nights.ahead["iob_u"][0], rtol=1e-6)
    np.testing.assert_allclose(first["X_future"][1], nights.ahead["cob_g"][0], rtol=1e-6)
    activity = nights.past["insulin_activity_u_h"][0]
    np.testing.assert_allclose(first["X"][4][:41], [activity[40]] * 41, rtol=1e-6)
    np.testing.assert_allclose(first["X"][4][41:], activity[41:], rtol=1e-6)

    assert len(second["X"]) == 5
    assert len(second["X_future"]) == 4
    sine, cosine = second["X_future"][2:]
    turn = 2 * np.pi * (23.5 + np.arange(1, HORIZON + 1) / 12) / 24
    np.testing.assert_allclose(sine, np.sin(turn), atol=1e-6)
    np.testing.assert_allclose(cosine, np.cos(turn), atol=1e-6)
    np.testing.assert_allclose(second["X"][3][-1], np.cos(2 * np.pi * 23.5 / 24), atol=1e-6)


def test_an_amount_with_a_gap_is_left_out_of_its_night(server: Server) -> None:
    """Its last dose repeated would be one that nobody gave; a level stands."""
    amounts = ("insulin_u", "carbs_g", "steps")
    nights = invent_nights(2)
    for name in (*amounts, "heart_rate"):
        nights.past[name][0, 100:103] = np.nan
    timegpt.answer(nights, options(server, covariates=(*amounts, "heart_rate")), {})
    first, second = (asked.body["series"] for asked in server.forecasts)
    [rate] = first["X"]
    np.testing.assert_allclose(rate[100:103], nights.past["heart_rate"][0, 99], rtol=1e-6)
    assert len(second["X"]) == 4
    for sent, name in zip(second["X"], (*amounts, "heart_rate"), strict=True):
        np.testing.assert_allclose(sent, nights.past[name][1], rtol=1e-6)


def test_what_the_service_fits_to_a_request_is_fitted_to_one_night(server: Server) -> None:
    nights = invent_nights(3)
    timegpt.answer(nights, options(server, strategy="fine_tune"), {})
    timegpt.answer(nights, options(server, strategy="fine_tune", finetune_steps=3), {})
    timegpt.answer(nights, options(server, covariates=("iob_u",)), {})
    assert [len(asked.body["series"]["sizes"]) for asked in server.forecasts] == [1] * 9
    assert [asked.body["finetune_steps"] for asked in server.forecasts] == [10] * 3 + [3] * 3 + [
        0
    ] * 3


def test_gaps_hold_the_last_value_and_a_leading_gap_is_cut(server: Server) -> None:
    nights = invent_nights(2)
    nights.glucose_NL[0, :50] = np.nan
    nights.glucose_NL[0, 100:103] = np.nan
    nights.glucose_NL[0, -2:] = np.nan
    nights.glucose_NL[1, 1::3] = nights.glucose_NL[1, 2::3] = np.nan  # a reading each 15 minutes
    timegpt.answer(nights, options(server), {})
    series = server.forecasts[0].body["series"]
    assert series["sizes"] == [STEPS - 50, STEPS]
    first, second = np.split(np.array(series["y"]), [STEPS - 50])
    np.testing.assert_allclose(first[50:53], nights.glucose_NL[0, 99], rtol=1e-6)
    np.testing.assert_allclose(first[-2:], nights.glucose_NL[0, -3], rtol=1e-6)
    np.testing.assert_allclose(second, np.repeat(nights.glucose_NL[1, ::3], 3), rtol=1e-6)


def test_context_steps_are_the_newest(server: Server) -> None:
    nights = invent_nights(1)
    timegpt.answer(nights, options(server, context_steps=100), {})
    np.testing.assert_allclose(
        server.forecasts[0].body["series"]["y"], nights.glucose_NL[0, -100:], rtol=1e-6
    )


@pytest.mark.parametrize("readings", [0, HORIZON])
def test_too_short_a_context_is_named_before_anything_is_sent(
    readings: int, server: Server
) -> None:
    nights = invent_nights(3)
    nights.glucose_NL[1, : STEPS - readings] = np.nan
    error = refused(nights, options(server))
    assert f"night 2 of 3 there are {readings} steps" in str(error)
    assert not server.asked


def test_nothing_is_sent_unless_people_s_data_may_leave(server: Server) -> None:
    error = refused(
        invent_nights(2),
        options(server, people_data_may_leave_this_machine=False, covariates=("iob_u",)),
    )
    for told in (server.url, "2 nights", "288 steps of glucose, iob_u", "no name", "=true"):
        assert told in str(error)
    assert not server.asked
    for vague in ("yes", 1, "true"):
        with pytest.raises(InputError, match="valid boolean"):
            plugins.options("model", "timegpt", {"people_data_may_leave_this_machine": vague})


@pytest.mark.parametrize("key", [None, "", "  ", "nixak-\nx", "schlüssel", "two words"])
def test_nothing_is_sent_without_a_usable_key(
    key: str | None, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NIXTLA_API_KEY")
    if key is not None:
        monkeypatch.setenv("NIXTLA_API_KEY", key)
    error = refused(invent_nights(1), options(server))
    assert "NIXTLA_API_KEY" in str(error)
    assert not (key or "").strip() or (key or "") not in str(error)
    assert not server.asked


def test_a_key_may_end_in_a_line_break(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIXTLA_API_KEY", f"{KEY}\n")
    timegpt.answer(invent_nights(1), options(server), {})


def test_the_key_is_no_option() -> None:
    for name in ("api_key", "key", "NIXTLA_API_KEY"):
        with pytest.raises(InputError, match="Extra inputs"):
            plugins.options("model", "timegpt", {name: KEY})
    for address in ("http://api.nixtla.io", "https://me:secret@host", "https://host?key=secret"):
        with pytest.raises(InputError) as caught:
            plugins.options("model", "timegpt", {"base_url": address})
        assert "secret@" not in str(caught.value)
        assert "key=secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"strategy": "from_scratch"}, "'zero_shot' or 'fine_tune'"),
        ({"finetune_steps": 5}, "of strategy fine_tune"),
        ({"strategy": "fine_tune", "batch": 2}, "leave batch out"),
        ({"covariates": ("clock",), "batch": 2}, "leave batch out"),
        ({"covariates": ("iob",)}, "unknown covariate 'iob'"),
        ({"most_dollars": 3}, "needs a price"),
        (
            {"strategy": "fine_tune", "most_dollars": 3, "dollars_per_1000_tokens": 1},
            "dollars_per_request alone",
        ),
    ],
)
def test_impossible_options_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        plugins.options("model", "timegpt", given)


def test_the_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs nixtla.*nocturnal-kedro\[timegpt\]"):
        plugins.options("model", "timegpt", {})


def test_too_many_nights_are_refused_with_the_estimate(server: Server) -> None:
    assert timegpt.Options().most_nights == 500
    error = refused(invent_nights(7), options(server, most_nights=6, batch=3))
    assert "7 nights, more than model_options.timegpt.most_nights=6" in str(error)
    tokens = 7 * (STEPS + 21 * HORIZON)
    assert f"4 requests, {tokens} tokens" in str(error)
    assert not server.asked


def test_too_many_dollars_are_refused_and_the_estimate_is_logged(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    nights = invent_nights(7)
    prices = {"dollars_per_request": 0.5, "dollars_per_1000_tokens": 0.1, "batch": 3}
    dollars = 4 * 0.5 + 0.1 * 7 * (STEPS + 21 * HORIZON) / 1000
    error = refused(nights, options(server, most_dollars=dollars - 0.01, **prices))
    assert f"about {dollars:.2f} dollars" in str(error)
    assert not server.asked
    with caplog.at_level(logging.INFO, "nocturnal_kedro"):
        timegpt.answer(nights, options(server, most_dollars=dollars + 0.01, **prices), {})
    assert f"for 7: 4 requests, {7 * (STEPS + 21 * HORIZON)} tokens, about {dollars:.2f}" in (
        caplog.text
    )
    assert len(server.asked) == 4


def test_what_is_answered_is_not_asked_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights = invent_nights(4)
    answers: dict[str, bytes] = {}
    first = timegpt.answer(nights, options(server), answers)
    assert len(answers) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in answers)
    server.asked.clear()
    # Neither leave nor key is needed where nothing is sent.
    monkeypatch.delenv("NIXTLA_API_KEY")
    again = timegpt.answer(
        nights, options(server, people_data_may_leave_this_machine=False, most_nights=0), answers
    )
    assert not server.asked
    np.testing.assert_array_equal(first.point_NH, again.point_NH)
    assert first.quantiles_NHQ is not None
    np.testing.assert_array_equal(first.quantiles_NHQ, again.quantiles_NHQ)


def test_only_the_missing_are_asked_and_order_is_kept(server: Server) -> None:
    nights = invent_nights(6)
    answers: dict[str, bytes] = {}
    timegpt.answer(nights, options(server), answers)
    for key in list(answers)[1::2]:
        del answers[key]
    server.asked.clear()
    answer = timegpt.answer(nights, options(server, most_nights=3), answers)
    assert server.nights == 3
    np.testing.assert_allclose(answer.point_NH, expected(nights), atol=1e-4)


def test_a_night_that_stands_twice_is_paid_once(server: Server) -> None:
    nights = invent_nights(3)
    nights.glucose_NL[2] = nights.glucose_NL[0]
    answer = timegpt.answer(nights, options(server), {})
    assert server.nights == 2
    np.testing.assert_array_equal(answer.point_NH[0], answer.point_NH[2])


@pytest.mark.parametrize(
    "change",
    [
        {"model": "timegpt-1"},
        {"strategy": "fine_tune"},
        {"strategy": "fine_tune", "finetune_steps": 11},
        {"covariates": ("iob_u",)},
        {"context_steps": STEPS - 1},
    ],
)
def test_another_question_has_another_key(change: dict[str, Any], server: Server) -> None:
    nights, answers = invent_nights(1), dict[str, bytes]()
    timegpt.answer(nights, options(server), answers)
    timegpt.answer(nights, options(server, **change), answers)
    assert len(answers) == 2


def test_values_of_another_night_have_another_key(server: Server) -> None:
    answers: dict[str, bytes] = {}
    given = options(server, covariates=("iob_u",))
    nights = invent_nights(1)
    timegpt.answer(nights, given, answers)
    nights.glucose_NL[0, 0] += 1
    timegpt.answer(nights, given, answers)
    nights.past["iob_u"][0, 0] += 1
    timegpt.answer(nights, given, answers)
    nights.ahead["iob_u"][0, -1] += 1
    timegpt.answer(nights, given, answers)
    nights.slot_of_day_N[0] += 1
    timegpt.answer(nights, given, answers)
    assert len(answers) == 5
    # How it is asked is not what is asked.
    timegpt.answer(nights, options(server, covariates=("iob_u",), retries=1, timeout_s=9), answers)
    assert len(answers) == 5


@pytest.mark.parametrize("how", ["bit", "cut", "empty", "other"])
def test_a_damaged_answer_is_named_and_not_used(how: str, server: Server) -> None:
    nights, answers = invent_nights(2), dict[str, bytes]()
    timegpt.answer(nights, options(server), answers)
    key = list(answers)[1]
    damage(key, answers, how)
    server.asked.clear()
    error = refused(nights, options(server), answers)
    assert f"'{key}' is damaged" in str(error)
    assert not server.asked


@pytest.mark.slow
def test_too_many_requests_are_asked_again_when_told(server: Server) -> None:
    wait = {"retry-after": "1"}
    server.faults += [Fault(429, {"message": "Too many requests"}, wait)] * 2
    nights = invent_nights(2)
    answer = timegpt.answer(nights, options(server), {})
    np.testing.assert_allclose(answer.point_NH, expected(nights), atol=1e-4)
    moments = [asked.at for asked in server.forecasts]
    assert len(moments) == 3
    assert (np.diff(moments) >= 1).all()


@pytest.mark.slow
def test_retry_after_may_be_a_date(server: Server) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=2)
    wait = {"Retry-After": format_datetime(moment, usegmt=True)}
    server.faults.append(Fault(503, {"detail": "busy"}, wait))
    timegpt.answer(invent_nights(1), options(server), {})
    assert datetime.now(UTC) >= moment - timedelta(seconds=1)


@pytest.mark.parametrize("header", ["soon", "", "-5", "1e9999", "nan"])
def test_a_senseless_retry_after_is_ignored(header: str, server: Server) -> None:
    server.faults.append(Fault(429, {"message": "Too many"}, {"retry-after": header}))
    timegpt.answer(invent_nights(1), options(server), {})
    assert len(server.forecasts) == 2


def test_a_wait_of_hours_ends_the_run_instead(server: Server) -> None:
    server.faults.append(Fault(429, {"message": "Quota"}, {"retry-after": "7200"}))
    error = refused(invent_nights(1), options(server))
    assert "It asks to wait 7200 s" in str(error)
    assert "attempt 1 of 6" in str(error)


def test_waits_double_and_are_never_alike(server: Server) -> None:
    service = timegpt._Service(options(server), timegpt._api_key())
    waits = np.array([[service._wait_s(attempt) for attempt in range(1, 6)] for _ in range(200)])
    longest = timegpt.FIRST_WAIT_S * 2 ** np.arange(5)
    assert (waits <= longest).all()
    assert (waits >= longest / 2).all()
    assert (np.ptp(waits, axis=0) > longest / 4).all()
    assert service._wait_s(100) <= timegpt.LONGEST_BACKOFF_S


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_passing_faults_are_asked_again_as_often_as_allowed(status: int, server: Server) -> None:
    server.faults += [Fault(status, b"<html>gateway</html>")] * 9
    answers: dict[str, bytes] = {}
    error = refused(invent_nights(1), options(server, retries=2), answers)
    assert len(server.forecasts) == 3  # the client's own attempts do not multiply them
    for told in (f"status {status}", "gateway", "attempt 3 of 3", "goes on from there"):
        assert told in str(error)
    assert not answers


def test_a_broken_connection_is_asked_again(server: Server) -> None:
    server.faults += [Fault(close=True)] * 2
    timegpt.answer(invent_nights(1), options(server), {})
    assert len(server.forecasts) == 3


def test_silence_is_asked_again_after_the_timeout(server: Server) -> None:
    server.faults.append(Fault(hang=True))
    timegpt.answer(invent_nights(1), options(server, timeout_s=0.5), {})
    assert len(server.forecasts) == 2


def test_nobody_there_is_told(server: Server) -> None:
    error = refused(invent_nights(1), options(server, base_url="http://127.0.0.1:9", retries=1))
    assert "did not answer: ConnectError" in str(error)
    assert "attempt 2 of 2" in str(error)


@pytest.mark.parametrize("status", [400, 402, 403, 404, 422])
def test_a_refusal_is_told_once_with_the_words_of_the_service(status: int, server: Server) -> None:
    words = {"message": "Subscription ended", "details": f"pay for {KEY}", "code": "A21"}
    server.faults.append(Fault(status, words))
    error = refused(invent_nights(1), options(server))
    assert f"status {status}: Subscription ended; pay for ***" in str(error)
    assert len(server.forecasts) == 1


def test_what_the_service_repeats_of_readings_is_not_told(server: Server) -> None:
    readings = [123.4, 56.7]
    fault = {"loc": ["body", "series", "y"], "msg": "too short", "input": readings}
    server.faults.append(Fault(422, {"detail": [fault]}))
    error = refused(invent_nights(1), options(server))
    assert "['body', 'series', 'y'] too short" in str(error)
    assert "123.4" not in str(error)


def test_a_wrong_key_is_told_and_shown_nowhere(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NIXTLA_API_KEY", "nixak-stolen")
    given = options(server)
    with caplog.at_level(logging.DEBUG):
        error = refused(invent_nights(1), given)
    assert "status 401: Invalid API key; Key not found: Bearer ***" in str(error)
    assert "is NIXTLA_API_KEY right" in str(error)
    assert len(server.asked) == 1
    service = timegpt._Service(given, timegpt._api_key())
    shown = [
        "".join(traceback.format_exception(error)),
        repr(error.__context__),
        caplog.text,
        repr(given),
        given.model_dump_json(),
        repr(service),
        repr(vars(service)),
    ]
    assert not [text for text in shown if "nixak-stolen" in text]


def test_the_client_s_log_is_as_before_afterwards(server: Server) -> None:
    before = list(logging.getLogger("nixtla.nixtla_client").filters)
    server.faults.append(Fault(400, {"detail": "no"}))
    refused(invent_nights(1), options(server))
    assert logging.getLogger("nixtla.nixtla_client").filters == before


def test_a_warning_of_the_client_is_told_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    nights = invent_nights(3)
    longer = Nights(**{**vars(nights), "horizon": 200})
    timegpt.answer(longer, options(server, batch=1), {})
    told = [r for r in caplog.records if r.name.startswith("nixtla")]
    assert [r.levelname for r in told] == ["WARNING"]
    assert "exceeds the model horizon" in told[0].getMessage()


def drop(name: str) -> Any:
    return lambda right: right.pop(name)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(body=b"{not JSON"),
        Fault(body=b"[1, 2]"),
        Fault(body=b"null"),
        Fault(body={"data": {}}),
        Fault(edit=drop("mean")),
        Fault(edit=drop("intervals")),
        Fault(edit=lambda right: right.update(intervals=None)),
        Fault(edit=lambda right: right.update(intervals=[1])),
        Fault(edit=lambda right: right["intervals"].pop("hi-98")),
        Fault(edit=lambda right: right["mean"].pop()),  # a step too few
        Fault(edit=lambda right: right["mean"].append(1.0)),
        Fault(edit=lambda right: right["intervals"]["lo-90"].pop()),
        Fault(edit=lambda right: right["mean"].__setitem__(3, None)),
        Fault(edit=lambda right: right["mean"].__setitem__(3, "high")),
    ],
)
def test_a_senseless_answer_is_told_and_not_kept(fault: Fault, server: Server) -> None:
    server.faults.append(fault)
    answers: dict[str, bytes] = {}
    error = refused(invent_nights(2), options(server), answers)
    assert re.search("gave an answer of no use|Could not parse JSON", str(error))
    assert not answers
    assert len(server.forecasts) == 1  # it may have been paid for


def test_what_came_before_an_error_is_kept(server: Server) -> None:
    server.faults += [Fault(), Fault(402, {"message": "Pay"})]
    nights = invent_nights(6)
    answers: dict[str, bytes] = {}
    refused(nights, options(server, batch=2), answers)
    assert len(answers) == 2
    server.asked.clear()
    answer = timegpt.answer(nights, options(server, batch=2), answers)
    assert server.nights == 4
    np.testing.assert_allclose(answer.point_NH, expected(nights), atol=1e-4)


KILLED = """
import sys
from pathlib import Path
from nocturnal_kedro.datasets.answers import AnswersOnDisk
from nocturnal_kedro.models import timegpt
from tests.models.test_timegpt import invent_nights
given = {"base_url": sys.argv[1], "people_data_may_leave_this_machine": True, "batch": 2}
timegpt.answer(
    invent_nights(6), timegpt.Options.model_validate(given), AnswersOnDisk(Path(sys.argv[2]))
)
"""


@pytest.mark.slow
def test_a_killed_run_loses_the_batch_in_flight_at_most(server: Server, tmp_path: Path) -> None:
    from nocturnal_kedro.datasets.answers import AnswersOnDisk

    server.faults += [Fault(), Fault(hang=True)]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, server.url, str(tmp_path)],
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        text=True,
    )
    reached = server.hanging.wait(60)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert reached, said
    answers = AnswersOnDisk(tmp_path)
    assert len(answers) == 2
    server.asked.clear()
    nights = invent_nights(6)
    answer = timegpt.answer(nights, options(server, batch=2), answers)
    assert server.nights == 4
    np.testing.assert_allclose(answer.point_NH, expected(nights), atol=1e-4)


def test_it_is_fitted_and_forecasts_like_any_model(
    data: Data, server: Server, tmp_path: Path
) -> None:
    answers: dict[str, bytes] = {}
    artifact = fit_model(
        "timegpt",
        CONSENT | {"base_url": server.url},
        data,
        Training(),
        kept=Kept(answers=answers),
    )
    asked_for = server.nights
    assert asked_for == len(data.night_rows("validation"))
    frame, _ = forecast(artifact, data.corpus, data.splits, data.origins, answers=answers)
    tested = data.origins[data.origins["split"] != "train"]
    assert len(frame) == len(tested) * data.task.horizon_steps
    assert frame[list(QUANTILES)].notna().all(axis=None)
    assert (np.diff(frame[list(QUANTILES)]) >= 0).all()
    assert server.nights == len(tested)  # validation was not asked for again
    newest_N = data.corpus.values_TC[origin_rows(data.corpus, tested), 0]
    np.testing.assert_allclose(
        frame.loc[frame["step"] == 1, "forecast_mg_dl"], newest_N + SLOPE, atol=1e-3
    )
    save_artifact(artifact, tmp_path / "model")
    for file in (tmp_path / "model").iterdir():
        assert KEY.encode() not in file.read_bytes()


def test_median_of_the_levels_is_the_point() -> None:
    assert timegpt.COLUMNS[MEDIAN] == "TimeGPT"
    assert len(timegpt.COLUMNS) == len(QUANTILE_LEVELS)
    assert timegpt.COLUMNS[0] == "TimeGPT-lo-98"
    assert timegpt.COLUMNS[1] == "TimeGPT-lo-90"
    assert timegpt.COLUMNS[-2:] == ("TimeGPT-hi-90", "TimeGPT-hi-98")
