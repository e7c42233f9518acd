"""What a model may be given beside glucose; apart from the windows: naming costs no torch."""

from __future__ import annotations

from nocturnal_kedro.series.physiology import ACTIONS

CLOCK = "clock"  # two channels: sine and cosine of the time of day
KNOWN_AHEAD = (*ACTIONS, CLOCK)
COVARIATES = (*KNOWN_AHEAD, "insulin_u", "carbs_g", "steps", "heart_rate")
