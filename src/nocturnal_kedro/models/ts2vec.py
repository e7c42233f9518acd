"""TS2Vec, written from the paper: Yue et al. 2022, arXiv:2106.10466; 21 native quantiles.

An encoder learns a representation of every step by contrast, without a target; a head then
forecasts from it. Shapes beside those of a `Batch`: T steps of the overlap of two crops, D hidden
channels, R numbers of a representation.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from nocturnal_kedro.models import Forecast, ModelOptions
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.schema import QUANTILE_LEVELS
from nocturnal_kedro.series.windows import Batch, Channels


class Network(BaseModel, extra="forbid", frozen=True):
    """Size of fresh weights; the defaults train on a laptop's CPU in minutes."""

    hidden: int = Field(default=16, ge=4)
    blocks: int = Field(default=6, ge=1)  # of dilation 1, 2, 4, ...: six see 21 hours
    representation: int = Field(default=32, ge=4)
    masked: float = Field(default=0.5, ge=0, lt=1)  # share of steps, while contrasting
    instance_share: float = Field(default=0.5, ge=0, le=1)  # of the loss; the rest is temporal
    frozen: bool = False  # the encoder stays as contrast left it, and the head alone learns on
    head: int = Field(default=64, ge=4)
    dropout: float = Field(default=0.1, ge=0, lt=1)  # of the head


class Options(ModelOptions, frozen=True):
    """TS2Vec; covariates are channels of the encoder, what is known ahead goes to the head."""

    network: Network | None = None
    presets: ClassVar = {
        "tiny": Network(hidden=8, blocks=4, representation=16, head=32, dropout=0.0),
        "small": Network(),
        "released": Network(hidden=64, blocks=10, representation=320, head=256),  # the paper's
    }
    # LoRA adapts linear layers; those of the encoder, but for the first, are convolutions.
    lora_targets: ClassVar = ("head.hidden", "head.quantiles")
    head: ClassVar = ("head.",)


def configure(network: Network, task: Task, channels: Channels) -> dict[str, Any]:
    """Sizes, as they are."""
    return network.model_dump()


def build(architecture: dict[str, Any], task: Task, channels: Channels) -> nn.Module:
    """A TS2Vec with fresh weights."""
    return TS2Vec(Network(**architecture), task.horizon_steps, channels)


class TS2Vec(nn.Module):
    """Representations of the context, and a head that forecasts from them.

    The convolutions look both ways. Nothing of the future is in reach: the context ends at the
    origin, and so does the first of two crops at the end of their overlap.
    """

    def __init__(self, network: Network, horizon: int, channels: Channels) -> None:
        super().__init__()
        self.settings = network
        self.encoder = Encoder(network, len(channels.context))
        self.head = Head(network, horizon, len(channels.future))
        if network.frozen:
            self.encoder.requires_grad_(False)

    @property
    def pretraining(self) -> Contrast:
        """What trains the encoder; made anew, so that no weight is stored under two names."""
        return Contrast(self.encoder, self.settings)

    def forward(self, batch: Batch) -> Forecast:
        """Quantiles of glucose, (B, H, Q), and their median as the point forecast."""
        representation_BLR = self.encoder(batch.context_BLC, batch.context_observed_BLC)
        change_BHQ = self.head(representation_BLR, batch.future_BHF)
        return Forecast.of_quantiles(batch.context_BLC[:, -1:, :1] + change_BHQ)


class Encoder(nn.Module):
    """A latent of each step, and dilated convolutions that put it into its context."""

    def __init__(self, network: Network, channels: int) -> None:
        super().__init__()
        # Without a bias, a step at which nothing is observed has the latent 0: it is masked.
        self.project = nn.Linear(2 * channels, network.hidden, bias=False)
        self.blocks = nn.Sequential(
            *(Block(network.hidden, network.hidden, 2**k) for k in range(network.blocks)),
            Block(network.hidden, network.representation, 1),
        )

    def forward(
        self, values_BLC: Tensor, observed_BLC: Tensor, masked_BL: Tensor | None = None
    ) -> Tensor:
        """Representations of every step, (B, L, R), of as many steps as there are.

        The paper masks a step whose values are missing. Here channels are missing one by one
        (heart rate for good, glucose between two readings of a slow sensor): what is unobserved
        adds nothing to the latent.
        """
        seen_BLC = observed_BLC.to(values_BLC.dtype)
        latent_BLD = self.project(torch.cat([values_BLC * seen_BLC, seen_BLC], dim=-1))
        if masked_BL is not None:
            latent_BLD = latent_BLD.masked_fill(masked_BL[..., None], 0.0)
        representation_BRL: Tensor = self.blocks(latent_BLD.transpose(1, 2))
        return representation_BRL.transpose(1, 2)


class Block(nn.Module):
    """Two convolutions of kernel 3 beside a short cut."""

    def __init__(self, wide_in: int, wide_out: int, dilation: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.GELU(),
            nn.Conv1d(wide_in, wide_out, 3, dilation=dilation, padding=dilation),
            nn.GELU(),
            nn.Conv1d(wide_out, wide_out, 3, dilation=dilation, padding=dilation),
        )
        self.short_cut = nn.Identity() if wide_in == wide_out else nn.Conv1d(wide_in, wide_out, 1)

    def forward(self, latent_BDL: Tensor) -> Tensor:
        """As many steps, (B, wide_out, L)."""
        changed_BDL: Tensor = self.short_cut(latent_BDL) + self.convolutions(latent_BDL)
        return changed_BDL


class Head(nn.Module):
    """From the representations, and what is known ahead, to how glucose will have changed."""

    def __init__(self, network: Network, horizon: int, future_channels: int) -> None:
        super().__init__()
        summary = 2 * network.representation
        # Contrast leaves open how long representations are.
        self.norm = nn.LayerNorm(summary)
        self.hidden = nn.Linear(summary + horizon * future_channels, network.head)
        self.dropout = nn.Dropout(network.dropout)
        self.quantiles = nn.Linear(network.head, horizon * len(QUANTILE_LEVELS))

    def forward(self, representation_BLR: Tensor, future_BHF: Tensor) -> Tensor:
        """Change from the newest reading at each level, in any order, (B, H, Q)."""
        summary_BS = torch.cat([representation_BLR[:, -1], representation_BLR.amax(dim=1)], dim=-1)
        known_BK = torch.cat([self.norm(summary_BS), future_BHF.flatten(1)], dim=-1)
        hidden_BN = self.dropout(nn.functional.gelu(self.hidden(known_BK)))
        change_BHQ: Tensor = self.quantiles(hidden_BN).unflatten(1, (-1, len(QUANTILE_LEVELS)))
        return change_BHQ


class Crops(NamedTuple):
    """Steps [first, overlap_end) and [overlap, last) of a window: they share the overlap."""

    first: int
    overlap: int
    overlap_end: int
    last: int


class Contrast(nn.Module):
    """The loss that the encoder learns by: two views of a window agree where they overlap.

    The other windows of the batch are what one is told apart from. Two of one person an hour apart
    are nearly the same and mislead it; among windows of 500 nights, one in 16 of a batch of 32 has
    another of its night beside it.
    """

    def __init__(self, encoder: Encoder, network: Network) -> None:
        super().__init__()
        self.encoder = encoder
        self.masked = network.masked
        self.instance_share = network.instance_share

    def forward(self, batch: Batch) -> Tensor:
        """Loss of each window, (B,); in training of new crops and masks, else of the same."""
        return hierarchical_loss(*self.views(batch), self.instance_share)

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Representations of the overlap in either crop, (B, T, R) each."""
        steps = batch.context_BLC.shape[1]
        crops = draw_crops(steps) if self.training else middle_crops(steps)
        # None is torch's own generator.
        generator = None if self.training else torch.Generator().manual_seed(0)
        first_BTR = self._represent(batch, crops.first, crops.overlap_end, generator)
        second_BTR = self._represent(batch, crops.overlap, crops.last, generator)
        overlap = crops.overlap_end - crops.overlap
        return first_BTR[:, -overlap:], second_BTR[:, :overlap]

    def _represent(
        self, batch: Batch, first: int, last: int, generator: torch.Generator | None
    ) -> Tensor:
        values_BLC = batch.context_BLC[:, first:last]
        masked_BL = torch.rand(values_BLC.shape[:2], generator=generator) < self.masked
        representation_BLR: Tensor = self.encoder(
            values_BLC,
            batch.context_observed_BLC[:, first:last],
            masked_BL.to(values_BLC.device),
        )
        return representation_BLR


def draw_crops(steps: int) -> Crops:
    """Two random crops: the ends of their overlap, then how far either goes on beyond it."""
    overlap, overlap_end = torch.randperm(steps + 1)[:2].sort().values.tolist()
    first = int(torch.randint(overlap + 1, ()))
    last = int(torch.randint(overlap_end, steps + 1, ()))
    return Crops(first, overlap, overlap_end, last)


def middle_crops(steps: int) -> Crops:
    """Two crops of three quarters: they share the half in the middle."""
    return Crops(0, steps // 4, steps - steps // 4, steps)


def hierarchical_loss(first_BTR: Tensor, second_BTR: Tensor, instance_share: float = 0.5) -> Tensor:
    """Mean over ever coarser steps of both contrasts, (B,): the paper's algorithm 1.

    A level is the mean over its steps, and the largest of two steps make one of the next, down to
    a single one. The paper's equation (3) is the sum of the two contrasts, which is twice the mean
    with a share of one half.
    """
    levels = []
    while True:
        loss_BT = instance_share * instance_loss(first_BTR, second_BTR)
        loss_BT = loss_BT + (1 - instance_share) * temporal_loss(first_BTR, second_BTR)
        levels.append(loss_BT.mean(dim=1))
        if first_BTR.shape[1] == 1:
            return torch.stack(levels).mean(dim=0)
        first_BTR, second_BTR = _coarser(first_BTR), _coarser(second_BTR)


def temporal_loss(first_BTR: Tensor, second_BTR: Tensor) -> Tensor:
    """How badly a step is told from the others of its window, (B, T): the paper's equation (1).

    -log( exp(r_t r'_t) / sum_s [ exp(r_t r'_s) + (s != t) exp(r_t r_s) ] ), with r of the first
    view and r' of the second. For one window of two steps with r = (1), (0) and r' = (1), (0) it
    is log(e + 2) - 1 = 0.551 and log(3) = 1.099.
    """
    steps = first_BTR.shape[1]
    alike_BTS = first_BTR @ torch.cat([second_BTR, first_BTR], dim=1).transpose(1, 2)
    # In place: this is the largest array of all, and a copy of it costs a third of the loss.
    alike_BTS.diagonal(offset=steps, dim1=1, dim2=2).fill_(-torch.inf)  # a step with itself
    return alike_BTS.logsumexp(dim=-1) - alike_BTS.diagonal(dim1=1, dim2=2)


def instance_loss(first_BTR: Tensor, second_BTR: Tensor) -> Tensor:
    """How badly a window is told from the others at a step, (B, T): the paper's equation (2).

    It is equation (1) with windows in the place of steps.
    """
    return temporal_loss(first_BTR.transpose(0, 1), second_BTR.transpose(0, 1)).transpose(0, 1)


def _coarser(representation_BTR: Tensor) -> Tensor:
    even = representation_BTR.shape[1] // 2 * 2
    return representation_BTR[:, :even].unflatten(1, (-1, 2)).amax(dim=2)
