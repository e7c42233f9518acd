"""What the models built on neuralforecast have in common: quiet construction, and its inputs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nocturnal_kedro.series.corpus import CHANNELS
from nocturnal_kedro.series.schema import QUANTILE_LEVELS
from nocturnal_kedro.series.windows import Batch, Channels


class Inputs:
    """Which channel of a batch is which of the library's exogenous series."""

    def __init__(self, channels: Channels) -> None:
        names = channels.context
        self.known_ahead = channels.known_ahead
        self.past_alone = [c for c in range(1, len(names)) if c not in channels.known_ahead]
        # The clock is never missing.
        self.recorded = [c for c, name in enumerate(names) if name in CHANNELS]
        self.hist_exog_list = [
            *(names[c] for c in self.past_alone),
            *(f"{names[c]}_missing" for c in self.recorded),
        ]
        self.futr_exog_list = list(channels.future)

    def past(self, batch: Batch) -> Tensor:
        """What is known of the past alone, (B, L, X).

        A value that is filled looks as if it were read: whether one is missing tells the two apart.
        What is known ahead is missing there where it is missing at the origin.
        """
        missing_BLR = ~batch.context_observed_BLC[..., self.recorded]
        return torch.cat([batch.context_BLC[..., self.past_alone], missing_BLR], dim=-1)

    def ahead(self, batch: Batch) -> Tensor:
        """What is known of past and future, (B, L + H, F)."""
        return torch.cat([batch.context_BLC[..., self.known_ahead], batch.future_BHF], dim=1)


def build_network(
    library: type[nn.Module], inputs: Inputs, architecture: dict[str, Any]
) -> nn.Module:
    """The library's network with an output for each quantile level and step."""
    from neuralforecast.losses.pytorch import BasePointLoss

    with _undisturbed() as seed:
        return library(
            hist_exog_list=inputs.hist_exog_list,
            futr_exog_list=inputs.futr_exog_list,
            # It sets the number of outputs; the library's own holds its levels as weights.
            loss=BasePointLoss(outputsize_multiplier=len(QUANTILE_LEVELS)),
            random_seed=seed,
            **architecture,
        )


@contextmanager
def _undisturbed() -> Iterator[int]:
    """A seed for the library, drawn from torch's generator.

    While it builds a network it seeds every generator of the process, leaves the seed in the
    environment and says so: generators and environment are put back as they were.
    """
    from pytorch_lightning.utilities.seed import isolate_rng

    seed = int(torch.randint(2**31, ()))
    logging.getLogger("lightning_fabric.utilities.seed").setLevel(logging.WARNING)
    before = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    with isolate_rng():
        yield seed
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
