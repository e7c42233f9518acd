"""What a model may be given beside glucose; apart from the windows: naming costs no torch."""

from __future__ import annotations

from nocturnal_kedro.series.physiology import ACTIONS

CLOCK = "clock"  # two channels: sine and cosine of the time of day
KNOWN_AHEAD = (*ACTIONS, CLOCK)
DOSES = ("insulin_u", "carbs_g")  # what ACTIONS follow from: of insulin and of carbs
# What was given, eaten or walked within one slot: the next slot's is another. All else is a level,
# that stands until it is read anew.
AMOUNTS = (*DOSES, "steps")
COVARIATES = (*KNOWN_AHEAD, *AMOUNTS, "heart_rate")
