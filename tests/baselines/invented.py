"""Windows and histories to give to baselines."""

import numpy as np

from nocturnal_kedro.baselines import History
from nocturnal_kedro.series.nights import Nights
from nocturnal_kedro.training.forecast import EVERYTHING

NAN = np.nan


def nights(
    glucose: np.ndarray | list[list[float]],
    person: np.ndarray | list[int],
    slot: int = 0,
    horizon: int = 4,
    past: dict[str, np.ndarray] | None = None,
    ahead: dict[str, np.ndarray] | None = None,
) -> Nights:
    """Windows with the covariates given; all others are unobserved."""
    window = np.array(glucose, float)
    unobserved, unknown = np.full(window.shape, NAN), np.full((len(window), horizon), NAN)
    return Nights(
        glucose_NL=window,
        past=dict.fromkeys(EVERYTHING.context[1:], unobserved) | (past or {}),
        ahead=dict.fromkeys(EVERYTHING.future, unknown) | (ahead or {}),
        person_N=np.array(person),
        slot_of_day_N=np.full(len(window), slot),
        horizon=horizon,
    )


def history(**changes: object) -> History:
    """Two people over two days: 100 and 200 mg/dL, ten higher in the second half of a day."""
    slot = np.tile(np.arange(288), 4)
    person = np.repeat([0, 1], 576)
    glucose = 100.0 * (person + 1) + 10 * (slot >= 144)
    line = nights([[*[NAN] * 300, 100, 101, 102, 103, 104, 105]] * 2, [0, 1])
    target = np.array([[106.0, 107, 108, 109]] * 2)
    values = {
        "glucose_T": glucose,
        "person_T": person,
        "slot_of_day_T": slot,
        "people": 2,
        "nights": line,
        "target_NH": target,
        "sample": lambda: (line, target),
    }
    return History(**(values | changes))  # type: ignore[arg-type]
