"""What is served of a night is what an evaluation saved of it; what cannot be served says why."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError, validated
from nocturnal_kedro.metrics.calibration import Spread
from nocturnal_kedro.metrics.cards import make_cards
from nocturnal_kedro.metrics.forecasts import NIGHT, QUANTILES, lay_out
from nocturnal_kedro.series.schema import MG_DL_PER_MMOL_L
from nocturnal_kedro.serving.readings import Recent
from nocturnal_kedro.serving.tonight import About, Served, Tonight, forecast_tonight, make_ready
from nocturnal_kedro.training.artifact import Artifact
from tests.serving.conftest import Cohort, Saved, ask, baseline, evaluate, of_night

Asked = dict[str, Any]


def tell(served: Served, asked: Asked) -> Tonight:
    return forecast_tonight(served, validated(Recent, asked, "request"))


def assert_as_saved(told: Tonight, saved: Saved, night: pd.Series) -> None:
    steps, low = of_night(saved.forecasts, night), of_night(saved.lows, night).iloc[0]
    np.testing.assert_allclose(told.forecast_mg_dl, steps["forecast_mg_dl"], rtol=1e-6)
    np.testing.assert_allclose(told.quantiles_mg_dl, steps[list(QUANTILES)], rtol=1e-6)
    assert told.low_probability == pytest.approx(low["low_probability"], abs=0.0011)  # a path
    assert told.very_low_probability == pytest.approx(low["very_low_probability"], abs=0.0011)


def test_a_night_is_served_as_the_evaluation_saved_it(
    served: Served, saved: Saved, cohort: Cohort
) -> None:
    nights = cohort.data.origins[cohort.data.origins["split"] == "patient"]
    served_nights = 0
    for _, night in nights.iterrows():
        asked = ask(cohort, night)
        newest = max(row["time"] for row in asked["readings"] if "glucose" in row)
        if night["origin"] - pd.Timestamp(newest) > pd.Timedelta(hours=1):
            with pytest.raises(InputError, match="minutes older than the origin"):
                tell(served, asked)
            continue
        assert_as_saved(tell(served, asked), saved, night)
        served_nights += 1
    assert served_nights > 5
    assert of_night(saved.lows, nights.iloc[-1])["low_probability"].iloc[0] > 0


def test_three_days_say_all_that_a_longer_record_does(served: Served, cohort: Cohort) -> None:
    night = cohort.data.origins[cohort.data.origins["split"] == "patient"].iloc[-1]
    whole, three = (tell(served, ask(cohort, night, days)) for days in (14, 73 / 24))
    np.testing.assert_allclose(three.quantiles_mg_dl, whole.quantiles_mg_dl, rtol=1e-6)
    short = tell(served, ask(cohort, night, days=1.1))
    assert not np.allclose(short.quantiles_mg_dl, whole.quantiles_mg_dl, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("last_value", {}),
        ("subject_mean", {}),
        ("climatology", {}),
        ("damped_trend", {}),
        ("auto_ets", {"model": "ANN", "damped": False, "context_steps": 48}),
        ("gradient_boosting", {"rounds": 3, "leaves": 4, "steps_per_window": 1}),
    ],
)
def test_a_baseline_is_served_too(name: str, given: dict[str, Any], cohort: Cohort) -> None:
    artifact = baseline(name, cohort, **given)
    served = make_ready(artifact, About(f"e/{name}", "e", ""))
    night = cohort.night()
    assert_as_saved(tell(served, ask(cohort, night)), evaluate(artifact, cohort), night)


def test_its_card_is_the_evaluations_own(
    served: Served, saved: Saved, cohort: Cohort, ttm: Artifact
) -> None:
    night = cohort.night()
    [made] = make_cards(
        lay_out(saved.forecasts, cohort.data.origins, "ttm"),
        saved.lows,
        cohort.outcomes,
        ttm.spread,
        pd.DataFrame([night[NIGHT]]).assign(chosen="asked for"),
        experiment="nocturnal_point",
        model="ttm",
    )
    card = tell(served, ask(cohort, night)).card
    assert card.low.reliability.validation_nights > 5
    assert card.low.usual_share == made.low.usual_share
    nobody = {"source": "served", "subject": "served", "happened": None}
    assert card == made.model_copy(update=nobody)


def test_without_validation_nights_a_card_says_so(ttm: Artifact, cohort: Cohort) -> None:
    served = make_ready(ttm, About("nocturnal_point/3", "nocturnal_point", ""))
    card = tell(served, ask(cohort, cohort.night())).card
    assert "nothing shows how true this is" in card.low.reliability.words
    assert card.low.usual_share is None
    assert card.low.alarm_rings is None


def test_in_mmol_and_by_a_zone_it_is_the_same_night(served: Served, cohort: Cohort) -> None:
    asked = ask(cohort, cohort.night())
    local = tell(served, asked)
    rows = [
        row | ({"glucose": row["glucose"] / MG_DL_PER_MMOL_L} if "glucose" in row else {})
        for row in asked["readings"]
    ]
    mmol = tell(served, asked | {"unit": "mmol/L", "readings": rows})
    np.testing.assert_allclose(mmol.quantiles_mg_dl, local.quantiles_mg_dl, rtol=1e-5)

    def utc(time: str) -> str:  # Kolkata is 5 h 30 min ahead
        return (pd.Timestamp(time) - pd.Timedelta(hours=5.5)).isoformat() + "Z"

    zoned = tell(
        served,
        {
            "origin": utc(asked["origin"]),
            "zone": "Asia/Kolkata",
            "unit": "mg/dL",
            "readings": [row | {"time": utc(row["time"])} for row in asked["readings"]],
        },
    )
    assert zoned == local


def test_what_the_model_is_not_told_it_says(served: Served, cohort: Cohort) -> None:
    asked = ask(cohort, cohort.night())
    told = tell(served, asked)
    assert told.not_on_record == ()
    assert told.warnings == ()
    alone = [
        {"time": row["time"], "glucose": row["glucose"]}
        for row in asked["readings"]
        if "glucose" in row
    ]
    told = tell(served, asked | {"readings": alone})
    assert told.not_on_record == ("iob_u", "cob_g")
    origin = (cohort.night()["origin"] - pd.Timedelta(hours=7)).isoformat()
    earlier = [row for row in asked["readings"] if row["time"] <= origin]
    [warning] = tell(served, asked | {"origin": origin, "readings": earlier}).warnings
    assert "from midnight" in warning


def test_beyond_a_sensors_range_it_counts_as_its_end(served: Served, cohort: Cohort) -> None:
    asked = ask(cohort, cohort.night())
    newest = max(n for n, row in enumerate(asked["readings"]) if "glucose" in row)

    def told(glucose: object) -> Tonight:
        rows = list(asked["readings"])
        rows[newest] = rows[newest] | {"glucose": glucose}
        return tell(served, asked | {"readings": rows})

    assert told(430).quantiles_mg_dl == told("HIGH").quantiles_mg_dl == told(400).quantiles_mg_dl
    assert told("LOW").card.last_mg_dl == 40


def test_an_artifact_that_cannot_be_served_says_why(ttm: Artifact, about: About) -> None:
    record = {name: value for name, value in ttm.record.items() if name != "made_ready_by"}
    with pytest.raises(InputError, match="does not tell how insulin and carbs act"):
        make_ready(replace(ttm, record=record), about)
    with pytest.raises(InputError, match="never set right on validation"):
        make_ready(replace(ttm, spread=Spread.none(96)), about)
    with pytest.raises(InputError, match="by a model of other data"):
        make_ready(replace(ttm, record=ttm.record | {"data": "other"}), about)
    with pytest.raises(InputError, match="'lstm' would lean on were told by 'ttm'"):
        make_ready(replace(ttm, name="lstm"), about)
    with pytest.raises(InputError, match="asked of a service elsewhere"):
        make_ready(replace(ttm, name="timegpt"), replace(about, lows=about.lows[:0]))
