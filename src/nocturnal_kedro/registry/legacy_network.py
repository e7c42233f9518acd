"""What network the weights of a legacy folder are of, what it was given, and that it still is.

Sizes are told by the weights' shapes; what no shape tells, by the configuration.
"""

from __future__ import annotations

import math
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, field_validator

from nocturnal_kedro.errors import InputError, validated
from nocturnal_kedro.registry.legacy import HUB_CONFIG, Legacy, shown
from nocturnal_kedro.series.corpus import CHANNELS
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.scaler import GLUCOSE, Scaler
from nocturnal_kedro.series.schema import MG_DL_PER_MMOL_L, STEP_MINUTES, STEPS_PER_DAY
from nocturnal_kedro.training.artifact import Artifact, load_artifact, save_artifact

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE_MG_DL = 0.01  # a sensor shows whole mg/dL; float32 rounds glucose to 0.00003
WINDOWS = 16  # that both networks forecast
# Larger than any that was published, and small enough to be tried on a laptop.
MOST_CONTEXT_STEPS, MOST_CHANNELS, MOST_FEATURES = 16_384, 64, 2**17


class Config(BaseModel, frozen=True):
    """What of a network's configuration its forecasts follow from; defaults are the library's."""

    context_length: int = Field(ge=STEPS_PER_DAY, le=MOST_CONTEXT_STEPS)
    prediction_length: int = Field(ge=1, le=MOST_CONTEXT_STEPS)
    prediction_filter_length: int | None = Field(default=None, ge=1)
    patch_length: int
    patch_stride: int = Field(ge=1)
    num_input_channels: int = Field(default=1, ge=1, le=MOST_CHANNELS)
    prediction_channel_indices: list[int] | None = None
    exogenous_channel_indices: list[int] | None = None
    d_model: int
    expansion_factor: int
    num_layers: int
    dropout: float = Field(default=0.2, ge=0, lt=1)
    head_dropout: float = Field(default=0.2, ge=0, lt=1)
    mode: str
    gated_attn: bool
    norm_mlp: str
    norm_eps: float = Field(default=1e-5, gt=0, lt=1)
    self_attn: bool
    self_attn_heads: int = Field(default=1, ge=1, le=64)
    use_positional_encoding: bool
    positional_encoding_type: Literal["sincos", "random"] = "sincos"
    scaling: Literal["std", "mean"] | bool | None = "std"
    adaptive_patching_levels: int
    resolution_prefix_tuning: bool
    frequency_token_vocab_size: int = 5
    use_decoder: bool
    decoder_num_layers: int = 8
    decoder_d_model: int = 8
    decoder_adaptive_patching_levels: int = 0
    decoder_raw_residual: bool = False
    decoder_mode: str = "common_channel"
    enable_forecast_channel_mixing: bool
    fcm_gated_attn: bool = True
    fcm_context_length: int = Field(default=1, ge=0, le=512)
    fcm_use_mixer: bool = False
    fcm_mix_layers: int = Field(default=2, ge=1, le=64)
    fcm_prepend_past: bool = True
    fcm_prepend_past_offset: int | None = Field(default=None, ge=0)

    @field_validator("scaling", mode="before")
    @classmethod
    def _none(cls, given: Any) -> Any:
        return None if str(given).lower() in ("none", "null", "false", "") else given

    @property
    def horizon(self) -> int:
        """Steps of a forecast."""
        return self.prediction_filter_length or self.prediction_length

    @property
    def mixes_channels(self) -> bool:
        """Whether glucose to come depends on other channels, or on how many there are."""
        modes = {self.mode, self.decoder_mode if self.use_decoder else ""}
        return self.enable_forecast_channel_mixing or "mix_channel" in modes

    @property
    def glucose_channel(self) -> int:
        """One of channels that share all weights: the first that is forecast."""
        return self.prediction_channel_indices[0] if self.prediction_channel_indices else 0


# How scripts call what the library calls otherwise.
ALIASES = {
    "context_length": (
        "context_len", "context_steps", "context_window", "seq_len", "sequence_length",
        "input_length", "input_len", "lookback", "history_length",
    ),
    "prediction_length": (
        "pred_len", "prediction_len", "prediction_steps", "horizon", "horizon_steps",
        "forecast_horizon", "forecast_length", "output_length",
    ),
    "patch_length": ("patch_len", "patch_size"),
    "patch_stride": ("stride",),
    "num_input_channels": ("input_channels", "num_channels", "n_channels"),
    "d_model": ("hidden_size", "hidden_dim"),
    "num_layers": ("n_layers", "num_hidden_layers", "encoder_layers"),
    "decoder_num_layers": ("decoder_layers",),
}  # fmt: skip
# Where a setting of the network stands; elsewhere these words may mean another thing.
OF_NETWORK = {"model", "model_config", "model_params", "network", "architecture", "config", "ttm"}
GENERIC = ("scaling", "mode", "dropout", "stride", "horizon")
# What the folder may say and the weights know better: where both differ, something is wrong.
CHECKED = (
    "d_model", "patch_length", "prediction_length", "num_layers", "adaptive_patching_levels",
    "decoder_d_model", "decoder_num_layers",
)  # fmt: skip
# What networks are told by that this project cannot build.
TOO_NEW = (
    "multi_quantile_head", "multi_scale", "register_tokens", "fft_length", "decompose",
    "light_mode", "enable_base_norm_always", "categorical_vocab_size_list",
)  # fmt: skip
Told = dict[str, tuple[Any, str]]  # a setting's value, and where it stands


def read_config(legacy: Legacy) -> tuple[Config, list[str]]:
    """The network's configuration, and what of it is assumed.

    Raises `InputError` where configuration and weights differ, and where what no shape tells is not
    told.
    """
    names = (*Config.model_fields, *TOO_NEW)
    told = _told(legacy.texts, {name: ALIASES.get(name, ()) for name in names})
    kind = legacy.texts.get(HUB_CONFIG, {}).get("model_type", "tinytimemixer")
    if kind != "tinytimemixer":
        raise InputError(f"{HUB_CONFIG} is of model_type '{shown(kind)}', not of a Tiny Time Mixer")
    for name in TOO_NEW:
        if name in told and told[name][0]:
            raise InputError(f"{told[name][1]}: a network with '{name}' is not known here")
    shapes = read_shapes(legacy.state)
    patches = shapes.pop("patches")
    for name in CHECKED:
        given, where = told.get(name, (None, ""))
        if given is not None and name in shapes and given != shapes[name]:
            raise InputError(f"{where} is {shown(given)}, and the weights have {shapes[name]}")
    if "context_length" not in told:
        raise InputError("no file says context_length, and no weight's shape tells it")
    given = {name: value for name, (value, _) in told.items()} | shapes
    given.setdefault("patch_stride", shapes["patch_length"])
    config = validated(Config, given, "configuration")
    _require_possible(config, patches, told["context_length"][1])
    _require_steps(legacy)
    return config, _assumed(config, told)


def _require_possible(config: Config, patches: int, where: str) -> None:
    """Raise `InputError` on a network that the weights are not of, or that cannot be used here."""
    length, patch = config.context_length, config.patch_length
    if (max(length, patch) - patch) // config.patch_stride + 1 != patches:
        raise InputError(
            f"{where} is {length}, and the weights have {patches} patches of {patch} steps, one "
            f"every {config.patch_stride}"
        )
    if patches * max(config.d_model, config.decoder_d_model) > MOST_FEATURES:
        raise InputError(f"the network has more than {MOST_FEATURES} features: it is too large")
    channels = config.num_input_channels
    indices = (config.prediction_channel_indices or []) + (config.exogenous_channel_indices or [])
    if any(at not in range(channels) for at in indices):
        raise InputError(f"a channel is named that is not among {channels}: {shown(indices)}")
    if channels > 1 and config.mixes_channels:
        raise InputError(
            f"the network mixes its {channels} channels, and what they were is not known in this "
            f"project's terms: with several channels only a network is taken over that forecasts "
            f"glucose from glucose (decoder_mode common_channel)"
        )


def _assumed(config: Config, told: Told) -> list[str]:
    """What is taken for true though no file says it, and what was left out."""
    notes = []
    if "scaling" not in told:
        notes.append(f"scaling is not told: {config.scaling}, as the library does then")
    if config.num_input_channels > 1:
        notes.append(
            f"of {config.num_input_channels} channels glucose alone is kept: it depends on no other"
        )
    if config.resolution_prefix_tuning:
        notes.append(f"the token of its steps is that of {STEP_MINUTES} minutes")
    return notes


def _told(texts: dict[str, dict[str, Any]], aliases: dict[str, tuple[str, ...]]) -> Told:
    """Each setting's value and where it stands, by the best place that tells it.

    Best is a section of the network or the top, then the library's own name. Raises `InputError`
    where equally good places differ.
    """
    names = {name: name for name in aliases}
    names |= {alias: name for name, others in aliases.items() for alias in others}
    places: dict[str, list[tuple[tuple[bool, bool], Any, str]]] = {}
    for file, whole in texts.items():
        for path, section in sections(whole):
            elsewhere = not {part.lower() for part in path} <= OF_NETWORK
            for key, value in section.items():
                name = names.get(key.lower())
                if name is None or isinstance(value, dict) or (elsewhere and key in GENERIC):
                    continue
                where = f"{file}: {'.'.join([*path, key])}"
                places.setdefault(name, []).append(((elsewhere, key != name), value, where))
    found = {}
    for name, listed in places.items():
        best = min(rank for rank, _, _ in listed)
        first, *others = [(value, where) for rank, value, where in listed if rank == best]
        for value, where in others:
            if value != first[0]:
                raise InputError(f"{first[1]} is {shown(first[0])}, and {where} is {shown(value)}")
        found[name] = first
    return found


def sections(
    told: dict[str, Any], path: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every dict in a dict, with its place; the outermost first."""
    inner = [sections(part, (*path, key)) for key, part in told.items() if isinstance(part, dict)]
    return [(path, told), *(section for listed in inner for section in listed)]


def read_shapes(state: dict[str, Tensor]) -> dict[str, Any]:
    """What the names and shapes of the weights tell of the network.

    Raises `InputError` where they are not those of a Tiny Time Mixer that forecasts.
    """
    for name in state:
        if "lora_" in name:
            raise InputError(f"weight '{shown(name)}' is an adapter's: merge it and save again")
    d_model, patch_length = _shape(state, "backbone.encoder.patcher.weight")
    encoder, levels = _mixers(state, "backbone.encoder.mlp_mixer_encoder.mixers.")
    hidden, patches = _shape(state, f"{encoder}0.patch_mixer.mlp.fc1.weight")
    prefix = "backbone.encoder.freq_mod.0.weight"
    told = {
        "d_model": d_model,
        "patch_length": patch_length,
        "patches": patches - (prefix in state),  # the prefix is one, too
        "prediction_length": _shape(state, "head.base_forecast_block.weight")[0],
        "expansion_factor": hidden // patches,
        "num_layers": _count(state, encoder),
        "adaptive_patching_levels": levels,
        "mode": _channel_mode(state, "backbone."),
        "gated_attn": f"{encoder}0.patch_mixer.gating_block.attn_layer.weight" in state,
        "norm_mlp": "BatchNorm" if any(n.endswith("running_mean") for n in state) else "LayerNorm",
        "self_attn": f"{encoder}0.patch_mixer.self_attn_layer.k_proj.weight" in state,
        "use_positional_encoding": "backbone.encoder.positional_encoder.position_enc" in state,
        "resolution_prefix_tuning": prefix in state,
        "use_decoder": any(name.startswith("decoder.") for name in state),
        "enable_forecast_channel_mixing": any(name.startswith("head.fcm") for name in state),
    }
    if told["resolution_prefix_tuning"]:
        told["frequency_token_vocab_size"] = _shape(state, prefix)[0]
    if not told["use_decoder"]:
        return told
    decoder, decoder_levels = _mixers(state, "decoder.decoder_block.mixers.")
    adapter = "decoder.adapter.weight"
    return told | {
        "decoder_d_model": _shape(state, adapter)[0] if adapter in state else d_model,
        "decoder_num_layers": _count(state, decoder),
        "decoder_adaptive_patching_levels": decoder_levels,
        "decoder_mode": _channel_mode(state, "decoder."),
        "decoder_raw_residual": "decoder.decoder_raw_embedding.weight" in state,
    }


def _mixers(state: dict[str, Tensor], part: str) -> tuple[str, int]:
    """Where the layers of whole patches stand, the last of so many levels, if there are any."""
    levels = _count(state, part, ".mixer_layers.")
    return (f"{part}{levels - 1}.mixer_layers.", levels) if levels else (part, 0)


def _count(state: dict[str, Tensor], part: str, after: str = ".") -> int:
    """How many numbered parts there are."""
    found = (re.match(rf"{re.escape(part)}(\d+){re.escape(after)}", name) for name in state)
    return len({told[1] for told in found if told})


def _shape(state: dict[str, Tensor], name: str) -> list[int]:
    if name not in state:
        raise InputError(
            f"there is no weight '{name}': these {len(state)}, '{shown(next(iter(state)))}' and so "
            f"on, are not of a Tiny Time Mixer that forecasts"
        )
    shape = list(state[name].shape)
    if len(shape) != 2 or 0 in shape:
        raise InputError(f"weight '{name}' has the shape {shape}, and two axes are expected")
    return shape


def _channel_mode(state: dict[str, Tensor], part: str) -> str:
    mixed = any(n.startswith(part) and "channel_feature_mixer" in n for n in state)
    return "mix_channel" if mixed else "common_channel"


STEPS = {
    "step_minutes": ("interval_minutes", "sampling_minutes", "resolution_minutes", "freq_minutes"),
    "freq": ("frequency", "resolution", "sampling", "sampling_interval", "interval"),
}


def _require_steps(legacy: Legacy) -> None:
    """A network of other steps would be asked about another time; where none are told, 5 it is."""
    for name, (value, where) in _told(legacy.texts, STEPS).items():
        unit = r"\s*(?:t|m|min|mins|minutes?)" + ("?" if name == "step_minutes" else "")
        told = re.fullmatch(rf"(\d{{1,6}}(?:\.0+)?){unit}", str(value).strip().lower())
        if told and float(told[1]) != STEP_MINUTES:
            raise InputError(
                f"{where} is {shown(value)}: the steps here are of {STEP_MINUTES} minutes"
            )


MEANS = ("scaler_mean", "glucose_mean", "target_mean", "mean_glucose", "mean_", "mean")
STDS = ("scaler_std", "glucose_std", "target_std", "std_glucose", "std_", "std", "scale_", "scale")
OTHER_KINDS = {"data_min_", "data_min", "min_", "min", "center_"}
OF_SCALER = re.compile(r"scal|normali|standardi", re.IGNORECASE)
OF_GLUCOSE = re.compile(r"glucose|cgm|bg|sgv|target", re.IGNORECASE)
UNITS = {"mg/dl": 1.0, "mgdl": 1.0, "mg_dl": 1.0}
UNITS |= dict.fromkeys(("mmol/l", "mmol", "mmoll", "mmol_l"), MG_DL_PER_MMOL_L)
ASKED = "migration.scaler_mean_mg_dl and migration.scaler_std_mg_dl"


def read_scaler(
    legacy: Legacy, config: Config, given: tuple[float, float] | None
) -> tuple[Scaler, str]:
    """What glucose is scaled by before the network, and who says so.

    The folder's own wins; then what is `given`, mean and deviation in mg/dL. Where there is
    neither, a network that scales each window by itself gets mg/dL as they are, for any other mean
    and deviation would give the same forecasts; for another one `InputError` asks.
    """
    own = _own_scaler(legacy)
    if own:
        mean, std, where = own
        return _scaler(mean, std), f"{where}: {mean:.6g} and {std:.6g} mg/dL"
    if given:
        mean, std = given
        return _scaler(mean, std), f"the parameters: {mean:.6g} and {std:.6g} mg/dL"
    if config.scaling == "std":
        return _scaler(0.0, 1.0), "none, and none needed: the network scales each window by itself"
    raise InputError(
        f"no scaler is in the folder, and the network needs the one it was trained with (scaling: "
        f"{config.scaling}): give {ASKED}; 0 and 1 if it was given mg/dL"
    )


def _scaler(mean: float, std: float) -> Scaler:
    """Of glucose; the other channels, of which these networks see none, keep 0 and 1."""
    return Scaler(
        dict.fromkeys(CHANNELS, 0.0) | {GLUCOSE: mean},
        dict.fromkeys(CHANNELS, 1.0) | {GLUCOSE: std},
    )


def _own_scaler(legacy: Legacy) -> tuple[float, float, str] | None:
    """Mean and deviation in mg/dL, and where they stand; None where nothing tells of a scaler.

    Raises `InputError` where there are several, or one that cannot be that of glucose.
    """
    factor = _factor(legacy)
    found: list[tuple[float, float, str]] = []
    for file, whole in legacy.texts.items():
        for path, section in sections(whole):
            where = f"{file}: {'.'.join(path)}" if path else file
            pair = _pair(path, {key.lower(): value for key, value in section.items()}, where)
            if pair is None:
                continue
            mean, std = (_one_number(value, where) * factor for value in pair)
            if not (40 <= mean <= 400 and 0 < std <= 400):
                raise InputError(
                    f"{where}: a mean of {mean:.6g} and a deviation of {std:.6g} are not those of "
                    f"glucose in mg/dL: say the unit there, or take them out and give {ASKED}"
                )
            found.append((mean, std, where))
    if len({(mean, std) for mean, std, _ in found}) > 1:
        raise InputError(f"{found[0][2]} and {found[1][2]} tell of different scalers")
    return found[0] if found else None


def _pair(path: tuple[str, ...], names: dict[str, Any], where: str) -> tuple[Any, Any] | None:
    """Mean and deviation as a section tells them, if it is one of a scaler of glucose."""
    last = path[-1] if path else ""
    of_scaler = any(OF_SCALER.search(part) for part in path)
    own = of_scaler and bool(OF_SCALER.search(last) or OF_GLUCOSE.search(last))
    mean, std = (
        # Outside a section of their own only names that say what they are of.
        next((names[n] for n in of if names.get(n) is not None and (own or "_" in n[:-1])), None)
        for of in (MEANS, STDS)
    )
    if own and mean is None and OTHER_KINDS & names.keys():
        raise InputError(f"{where} is a scaler of another kind: take it out and give {ASKED}")
    return None if mean is None and std is None else (mean, std)


def _factor(legacy: Legacy) -> float:
    """From the folder's unit of glucose to mg/dL."""
    names = ("units", "glucose_unit", "glucose_units")
    unit, where = _told(legacy.texts, {"unit": names}).get("unit", ("mg/dl", ""))
    factor = UNITS.get(str(unit).lower().replace(" ", ""))
    if factor is None:
        raise InputError(f"{where} is {shown(unit)}, neither mg/dL nor mmol/L")
    return factor


def _one_number(value: Any, where: str) -> float:
    while isinstance(value, list) and len(value) == 1:
        [value] = value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(
            f"{where}: mean and deviation of glucose are not one finite number each, but "
            f"{shown(value)}: take them out and give {ASKED}"
        )
    return float(value)


def require_same_forecasts(legacy: Legacy, config: Config, artifact: Artifact) -> float:
    """The largest difference between the library's network and the artifact, in mg/dL.

    Both forecast the same invented windows: the library's class with the folder's own weights and
    channels, and the artifact as it is saved, loaded and restored. Raises `InputError` where they
    differ by more than `TOLERANCE_MG_DL`, or where the weights do not fit.
    """
    import torch

    from nocturnal_kedro.series.windows import Batch
    from nocturnal_kedro.training.start import restore_model

    network = _library_network(legacy, config)
    with tempfile.TemporaryDirectory() as room:
        save_artifact(artifact, Path(room) / "artifact")
        saved = load_artifact(Path(room) / "artifact")
    task = Task.model_validate(saved.record["task"])
    module = restore_model(saved, task).eval()
    glucose_NL, seen_NL = _invented(task.context_steps)
    mean, std = artifact.scaler.mean[GLUCOSE], artifact.scaler.std[GLUCOSE]
    scaled_NL = torch.from_numpy((glucose_NL - mean) / std).float()
    seen_NL1 = torch.from_numpy(seen_NL)[..., None]
    ahead_NH0 = torch.zeros(WINDOWS, task.horizon_steps, 0)
    target_NH = torch.zeros(WINDOWS, task.horizon_steps)
    nothing = (ahead_NH0, ahead_NH0.bool(), target_NH, target_NH.bool())
    with torch.no_grad():
        theirs_NH = _library_forecasts(network, config, scaled_NL, seen_NL1) * std + mean
        ours = module(Batch(scaled_NL[..., None], seen_NL1, *nothing))
    ours_NH = saved.scaler.to_mg_dl(ours.point_BH.double())
    if theirs_NH.shape != ours_NH.shape:
        raise InputError(f"the network forecasts {list(theirs_NH.shape)[1:]} steps")
    difference = float((theirs_NH - ours_NH).abs().max())
    if not difference <= TOLERANCE_MG_DL:  # nor NaN
        raise InputError(
            f"its forecasts would change by {difference:.3g} mg/dL, more than {TOLERANCE_MG_DL}"
        )
    return difference


def _invented(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Glucose that drifts between 40 and 400 mg/dL, (N, L), and what of it is observed."""
    draw = np.random.default_rng(0)
    walk_NL = draw.uniform(80, 250, (WINDOWS, 1)) + draw.normal(0, 5, (WINDOWS, steps)).cumsum(1)
    seen_NL = draw.random((WINDOWS, steps)) < 0.9
    seen_NL[0] = True
    return np.clip(walk_NL, 40, 400), seen_NL


def _library_network(legacy: Legacy, config: Config) -> nn.Module:
    """The library's own network with the folder's weights; `InputError` where they do not fit."""
    import torch
    from tsfm_public.models.tinytimemixer import TinyTimeMixerConfig, TinyTimeMixerForPrediction

    def build() -> nn.Module:
        return TinyTimeMixerForPrediction(TinyTimeMixerConfig(**config.model_dump()))

    try:
        with torch.device("meta"):  # no room is taken for what no weight is there
            shapes = {name: weight.shape for name, weight in build().state_dict().items()}
    except Exception as error:  # the library raises no narrower one
        raise InputError(f"the library cannot build such a network: {shown(error)}") from error
    for name in sorted(shapes.keys() | legacy.state.keys()):
        if name not in shapes or name not in legacy.state:
            lacks = "the configuration" if name not in shapes else "the folder"
            raise InputError(f"weight '{shown(name)}' is one that {lacks} does not have")
        if shapes[name] != legacy.state[name].shape:
            raise InputError(
                f"weight '{name}' has the shape {list(legacy.state[name].shape)}, and by the "
                f"configuration {list(shapes[name])}"
            )
    network = build()
    network.load_state_dict(legacy.state)
    return network.eval()


def _library_forecasts(
    network: nn.Module, config: Config, scaled_NL: Tensor, seen_NL1: Tensor
) -> Tensor:
    """What the library's own network says of glucose, (N, H) float64, scaled."""
    import torch
    from tsfm_public.toolkit.time_series_preprocessor import DEFAULT_FREQUENCY_MAPPING

    at = config.glucose_channel
    drawn = torch.Generator().manual_seed(0)
    past_NLC = torch.randn(*scaled_NL.shape, config.num_input_channels, generator=drawn)
    past_NLC[..., at] = scaled_NL
    token_N = torch.full((len(past_NLC),), DEFAULT_FREQUENCY_MAPPING["5min"])
    parts = [
        network(
            past_values=past_NLC[one],
            past_observed_mask=seen_NL1[one].expand_as(past_NLC[one]),
            freq_token=token_N[one] if config.resolution_prefix_tuning else None,
            return_loss=False,
        ).prediction_outputs[..., 0 if config.prediction_channel_indices else at]
        for one in torch.arange(len(past_NLC)).split(1)  # however many channels there are
    ]
    return torch.cat(parts).double()
