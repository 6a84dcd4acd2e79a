"""Conversion between the config.json of Hugging Face's Qwen2, Qwen3 and Llama models and a `DecoderConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dps_jax import _checks
from dps_jax.models._config import DecoderConfig
from dps_jax.models._rope import KINDS, RopeScaling, attention_scale


class _Family(NamedTuple):
    """The properties by which model families differ.

    Attributes:
      has_qk_norm: see `DecoderConfig`.
      has_qkv_bias: see `DecoderConfig`.
      architecture: name of the model class in `transformers`.
    """

    has_qk_norm: bool
    has_qkv_bias: bool
    architecture: str


FAMILIES = {
    "qwen2": _Family(has_qk_norm=False, has_qkv_bias=True, architecture="Qwen2ForCausalLM"),
    "qwen3": _Family(has_qk_norm=True, has_qkv_bias=False, architecture="Qwen3ForCausalLM"),
    "llama": _Family(has_qk_norm=False, has_qkv_bias=False, architecture="LlamaForCausalLM"),
}
# Fields of `RopeScaling` that need no conversion, with their names in config.json.
_ROPE_NAMES = {
    "linear": {},
    "yarn": {
        "attention_factor": "attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "is_truncated": "truncate",
    },
    "llama3": {"low_factor": "low_freq_factor", "high_factor": "high_freq_factor"},
}
_ORIGINAL, _LONGEST = "original_max_position_embeddings", "max_position_embeddings"


def to_hugging_face_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the content of config.json for a `transformers` model of this shape.

    The rotary frequencies are described twice: by `rope_theta` and `rope_scaling` for releases of 2024 and 2025, and by
    `rope_parameters` for later ones.

    Example: `to_hugging_face_config(DecoderConfig(vocab_size=110))["model_type"]` is "qwen3".

    Raises:
      ValueError: if neither Qwen2 (biases), Qwen3 (query and key norms) nor Llama (neither) has this shape; no family
        has patches.
    """
    if config.patch_bits:
        raise ValueError(f"patch_bits: expected 0, got {config.patch_bits}; no family of Hugging Face has patches")
    if config.has_qk_norm and config.has_qkv_bias:
        raise ValueError("config: expected has_qk_norm (Qwen3), has_qkv_bias (Qwen2) or neither (Llama), got both")
    flags = (config.has_qk_norm, config.has_qkv_bias)
    family = next(name for name, known in FAMILIES.items() if known[:2] == flags)
    if family == "qwen2" and config.head_dim * config.num_heads != config.hidden_size:
        raise ValueError(
            f"config: expected head_dim * num_heads = hidden_size for Qwen2, got {config.head_dim} * {config.num_heads}"
        )
    fields = {
        "model_type": family,
        "architectures": [FAMILIES[family].architecture],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_size,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.is_tied,
        "attention_bias": False,
        "hidden_act": "silu",
    }
    fields |= {"mlp_bias": False} if family == "llama" else {"use_sliding_window": False, "sliding_window": None}
    if config.rope is not None:
        fields["rope_scaling"] = _written(config.rope)
        fields["rope_parameters"] = {**fields["rope_scaling"], "rope_theta": config.rope_theta}
        if config.rope.original_length is not None:
            # Releases of 2025 compute the factor as the ratio of these two lengths.
            fields[_LONGEST] = round(config.rope.factor * config.rope.original_length)
    return fields


def _written(rope: RopeScaling) -> dict[str, Any]:
    """Returns the fields of a `RopeScaling` under their names in config.json."""
    fields: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind != "linear":
        fields[_ORIGINAL] = rope.original_length
    values = {theirs: getattr(rope, ours) for ours, theirs in _ROPE_NAMES[rope.kind].items()}
    # Releases of 2024 warn of `truncate`, which they do not support, so its default is not written.
    return fields | {name: value for name, value in values.items() if value is not None and value is not True}


def from_hugging_face_config(fields: Mapping[str, Any]) -> DecoderConfig:
    """Returns the shape of the decoder that the config.json of a model describes.

    Both descriptions of the rotary frequencies are read: `rope_parameters`, and `rope_theta` with `rope_scaling`.
    Fields that are unknown or do not affect the arithmetic are ignored.

    Example: `from_hugging_face_config(json.loads(pathlib.Path("config.json").read_text()))`.

    Args:
      fields: content of config.json.

    Raises:
      ValueError: for a field that is missing or invalid, and for anything that is not supported: another family,
        activation, attention or type of rotary positions, quantised weights, or other biases. The message names the
        field, its value and the supported values.
    """
    family = fields.get("model_type")
    _checks.check_choice("model_type", family, FAMILIES)
    known = FAMILIES[str(family)]
    _refuse_unsupported(fields, str(family))
    hidden_size, num_heads = _size(fields, "hidden_size"), _size(fields, "num_attention_heads")
    num_kv_heads = _size(fields, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ValueError(
            f"num_key_value_heads: expected a divisor of num_attention_heads = {num_heads}, got {num_kv_heads}"
        )
    if fields.get("head_dim") is None and hidden_size % num_heads:
        raise ValueError(
            f"hidden_size: expected a multiple of num_attention_heads = {num_heads} where there is no head_dim, got "
            f"{hidden_size}"
        )
    theta, rope = _rope(fields)
    return DecoderConfig(
        vocab_size=_size(fields, "vocab_size"),
        hidden_size=hidden_size,
        num_layers=_size(fields, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_size(fields, "head_dim", hidden_size // num_heads),
        mlp_size=_size(fields, "intermediate_size"),
        rope_theta=theta,
        norm_epsilon=_number(fields, "rms_norm_eps", 1e-6),
        has_qk_norm=known.has_qk_norm,
        has_qkv_bias=known.has_qkv_bias,
        is_tied=_flag(fields, "tie_word_embeddings"),
        rope=rope,
    )


def _refuse_unsupported(fields: Mapping[str, Any], family: str) -> None:
    """Raises ValueError for a field that asks for something that `Decoder` does not support."""
    _expect(fields, "hidden_act", "silu")
    _expect(fields, "partial_rotary_factor", 1)
    if fields.get("quantization_config") is not None:
        raise ValueError(
            f"quantization_config: expected none, got {_shown(fields['quantization_config'])}; use the weights in "
            "bfloat16, float16 or float32"
        )
    # Qwen2 has biases on queries, keys and values, and no others, whatever the value of `attention_bias`.
    for name in ("mlp_bias",) if family == "qwen2" else ("attention_bias", "mlp_bias"):
        if _flag(fields, name):
            raise ValueError(f"{name}: expected false in a model of {family}, got true; these biases are not supported")
    layers = fields.get("layer_types")
    if layers is not None:
        entries = layers if isinstance(layers, list) else [layers]
        other = next((entry for entry in entries if entry != "full_attention"), None)
        if other is not None:
            raise ValueError(f"layer_types: expected 'full_attention' in all layers, got {_shown(other)}")
        return
    is_windowed = fields.get("sliding_window") is not None and (
        _flag(fields, "use_sliding_window", default=family == "llama")
    )
    if is_windowed and family != "llama":
        # The first `max_window_layers` layers have full attention.
        is_windowed = _size(fields, "max_window_layers", 28, at_least=0) < _size(fields, "num_hidden_layers")
    if is_windowed:
        raise ValueError(
            f"sliding_window: expected null or use_sliding_window false, got {_shown(fields['sliding_window'])}; only "
            "full attention is supported"
        )


def _rope(fields: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Returns the base of the rotary frequencies, and their scaling or None."""
    found = {name: _rope_of(fields, name) for name in ("rope_parameters", "rope_scaling") if fields.get(name)}
    if not found:
        return _number(fields, "rope_theta", 10_000.0, above=0), None
    (name, first), *others = found.items()
    for other, second in others:
        if second != first:
            raise ValueError(
                f"{other}: expected the same as {name}, got {_shown(fields[other])} beside {_shown(fields[name])}; "
                "remove one of the two"
            )
    if fields.get("rope_theta") is not None and fields["rope_theta"] != first[0]:
        raise ValueError(
            f"rope_theta: expected the same as in {name}, got {_shown(fields['rope_theta'])} beside {first[0]}; remove "
            "one of the two"
        )
    return first


def _rope_of(fields: Mapping[str, Any], name: str) -> tuple[float, RopeScaling | None]:
    """Returns the base of the rotary frequencies that the field `name` describes, and their scaling or None."""
    rope = fields[name]
    if not isinstance(rope, Mapping):
        raise ValueError(f"{name}: expected an object or null, got {_shown(rope)}")
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ValueError(f"{name}: expected one for all layers, got {_shown(rope)}")
    kinds = [rope[key] for key in ("rope_type", "type") if rope.get(key) is not None] or ["default"]
    label = f"{name}.rope_type" if "rope_type" in rope else f"{name}.type"
    for kind in kinds:
        if kind not in ("default", *KINDS):
            supported = ", ".join(repr(known) for known in ("default", *KINDS))
            raise ValueError(f"{label}: expected one of {supported}, got {_shown(kind)}")
    if len(set(kinds)) > 1:
        raise ValueError(f"{label}: expected the same as type, got {kinds[0]!r} beside {kinds[1]!r}")
    _expect(rope, "partial_rotary_factor", 1, name)
    base = _number(fields, "rope_theta", 10_000.0, above=0)
    theta = _number(rope, "rope_theta", base, owner=name, above=0)
    kind = kinds[0]
    if kind == "default":
        return theta, None
    options: dict[str, Any] = {}
    for ours, theirs in _ROPE_NAMES[kind].items():
        if ours == "is_truncated":
            options[ours] = _flag(rope, theirs, default=True, owner=name)
        elif rope.get(theirs) is not None:
            options[ours] = _number(rope, theirs, owner=name, above=0)
    if kind == "llama3":
        for theirs in _ROPE_NAMES[kind].values():
            _number(rope, theirs, owner=name, above=0)  # raises if the field is missing
    if kind != "linear":
        # As in `transformers`, a field beside the object, as Phi-3 has it, takes precedence.
        places = [(fields, _ORIGINAL, ""), (rope, _ORIGINAL, name), (fields, _LONGEST, "")]
        place = next((place for place in places if place[0].get(place[1]) is not None), places[1])
        options["original_length"] = _size(place[0], place[1], owner=place[2])
    factor = _factor(fields, rope, name, kind, options)
    if kind == "yarn" and "attention_factor" not in options and rope.get("mscale") and rope.get("mscale_all_dim"):
        scales = [
            attention_scale(factor, _number(rope, key, owner=name, above=0)) for key in ("mscale", "mscale_all_dim")
        ]
        options["attention_factor"] = scales[0] / scales[1]
    try:
        return theta, RopeScaling(kind, factor, **options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _factor(fields: Mapping[str, Any], rope: Mapping[str, Any], name: str, kind: str, options: dict[str, Any]) -> float:
    """Returns the ratio of the extended to the original context length.

    If `factor` is null in a YaRN config, the ratio is computed from the two lengths.
    """
    if kind == "yarn" and "factor" in rope and rope["factor"] is None:
        return _size(fields, _LONGEST) / options["original_length"]
    return _number(rope, "factor", owner=name, above=0)


def _shown(value: Any) -> str:
    """Returns a value as text for an error message, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _label(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner else name


def _expect(fields: Mapping[str, Any], name: str, value: Any, owner: str = "") -> None:
    """Raises ValueError if a field is present, not null, and not equal to `value`."""
    if fields.get(name) is not None and fields[name] != value:
        raise ValueError(
            f"{_label(owner, name)}: expected {value!r}, got {_shown(fields[name])}; no other is supported"
        )


def _size(
    fields: Mapping[str, Any], name: str, default: int | None = None, *, at_least: int = 1, owner: str = ""
) -> int:
    """Returns an integer field after checking it; `default` if it is absent or null."""
    value = fields.get(name)
    return _checks.check_int(_label(owner, name), default if value is None else value, at_least=at_least)


def _number(
    fields: Mapping[str, Any], name: str, default: float | None = None, *, owner: str = "", above: float = 0
) -> float:
    """Returns a number field after checking it; `default` if it is absent or null."""
    value = fields.get(name)
    return _checks.check_number(_label(owner, name), default if value is None else value, above=above)


def _flag(fields: Mapping[str, Any], name: str, *, default: bool = False, owner: str = "") -> bool:
    """Returns a Boolean field after checking it; `default` if it is absent or null."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ValueError(f"{_label(owner, name)}: expected true or false, got {_shown(value)}")
    return value
