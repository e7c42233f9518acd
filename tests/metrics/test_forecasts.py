import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.forecasts import NIGHT, QUANTILES, RAW, lay_out

from .invented import invent_forecasts


def test_every_number_keeps_its_night_and_step() -> None:
    frame, origins = invent_forecasts()
    got = lay_out(frame, origins, "m")
    indexed = frame.set_index([*NIGHT, "step"])
    assert got.nights["split"].tolist() == origins["split"].tolist()
    for night, row in got.nights.iterrows():
        for step in (1, 7, 96):
            saved = indexed.loc[(row["source"], row["subject"], row["origin"], step)]
            np.testing.assert_equal(got.target_NH[night, step - 1], saved["target_mg_dl"])
            assert got.point_NH[night, step - 1] == saved["forecast_mg_dl"]
            for names, of in ((QUANTILES, got.quantiles_NHQ), (RAW, got.raw_NHQ)):
                np.testing.assert_array_equal(of[night, step - 1], saved[list(names)].to_numpy())
    assert got.observed.sum() == frame["target_mg_dl"].notna().sum()


def test_the_order_of_rows_does_not_matter() -> None:
    frame, origins = invent_forecasts()
    ordered, shuffled = (
        lay_out(some, of, "m")
        for some, of in (
            (frame, origins),
            (frame.sample(frac=1, random_state=1), origins.sample(frac=1, random_state=2)),
        )
    )
    order = [shuffled.nights.merge(ordered.nights.reset_index(), on=NIGHT)["index"].to_numpy()]
    pd.testing.assert_frame_equal(
        shuffled.nights, ordered.nights.iloc[order[0]].reset_index(drop=True)
    )
    np.testing.assert_array_equal(shuffled.target_NH, ordered.target_NH[order[0]])
    np.testing.assert_array_equal(shuffled.quantiles_NHQ, ordered.quantiles_NHQ[order[0]])


def test_rows_of_two_nights_in_each_others_place_are_put_back() -> None:
    """Every step is in its place, and not of its night."""
    frame, origins = invent_forecasts()
    order = np.arange(len(frame))
    order[[2, 96 + 2]] = order[[96 + 2, 2]]
    mixed = lay_out(frame.iloc[order].reset_index(drop=True), origins, "m")
    np.testing.assert_array_equal(mixed.point_NH, lay_out(frame, origins, "m").point_NH)


def test_a_point_model_has_no_quantiles_of_its_own() -> None:
    frame, origins = invent_forecasts()
    assert lay_out(frame.drop(columns=list(RAW)), origins, "m").raw_NHQ is None


def test_a_lost_step_and_a_doubled_night_are_told() -> None:
    frame, origins = invent_forecasts()
    first = frame[frame["origin"] == frame["origin"].iloc[0]]
    for broken in (
        frame.drop(index=5),
        pd.concat([frame, first]),
        pd.concat([first, frame.drop(index=first.index[4]), frame.loc[[100]]]),
        frame.drop(index=5).sample(frac=1, random_state=1),
        frame.assign(step=frame["step"].replace(3, 4)),
    ):
        with pytest.raises(InputError, match=r"'m' do not hold the steps 1 to 96 of every night"):
            lay_out(broken, origins, "m")


def test_an_unknown_origin_is_named() -> None:
    frame, origins = invent_forecasts()
    with pytest.raises(InputError, match="not in the frozen table: subject 'b', 2026-01-08"):
        lay_out(frame, origins[origins["subject"] != "b"], "m")


def test_a_bad_forecast_is_named() -> None:
    frame, origins = invent_forecasts()
    for name, value in (("forecast_mg_dl", np.nan), ("q0.3", np.inf), ("q0.99", np.nan)):
        bad = frame.copy()
        bad.loc[96 * 3 + 5, name] = value
        told = r"1 forecasts of 'm' are not finite.*subject 'b', origin 2026-01-08.*step 6"
        with pytest.raises(InputError, match=told):
            lay_out(bad, origins, "m")


def test_a_missing_quantile_is_named() -> None:
    frame, origins = invent_forecasts()
    with pytest.raises(InputError, match=r"'m' lack the quantiles q0\.05, q0\.99: .*another ver"):
        lay_out(frame.drop(columns=["q0.05", "q0.99"]), origins, "m")


def test_no_forecast_at_all_is_told() -> None:
    frame, origins = invent_forecasts()
    with pytest.raises(InputError, match="'m' hold no night"):
        lay_out(frame.iloc[:0], origins, "m")
