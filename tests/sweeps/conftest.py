"""What all sweeps are planned from here."""

import pytest

from nocturnal_kedro.training.cells import Grounds
from tests.sweeps.invented import grounds_of, invent_data


@pytest.fixture(scope="session")
def grounds() -> Grounds:
    data = invent_data({"a": 4, "b": 4, "c": 4}, slow="c", short="a/p1")
    return grounds_of(data)
