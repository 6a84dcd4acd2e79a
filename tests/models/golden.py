"""Tiny models of every family, rotary scaling and spelling of config.json, whose weights follow from their names.

`make_golden.py` writes what `transformers` computes with them to data/golden.npz; needs NumPy and safetensors only.
"""

import json
import pathlib
import zlib

import numpy as np
from safetensors.numpy import save_file

PATH = pathlib.Path(__file__).parent / "data" / "golden.npz"
VOCAB, PAD, NUM_GREEDY = 97, 0, 64
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "initializer_range": 0.02,
    "use_cache": True,
    "eos_token_id": None,
}
FAMILIES = {
    # No head_dim, and a window that is not in use, as on the Hub.
    "qwen2": {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 2},
    "qwen3": {"head_dim": 16, "attention_bias": False, "layer_types": ["full_attention"] * 2},
    "llama": {"head_dim": None, "num_key_value_heads": None, "attention_bias": False, "mlp_bias": False},
}
ROPES = {
    "default": {},
    "linear": {"factor": 2.5},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 256},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
}
YARN = {
    ("qwen2", False): {},
    ("qwen2", True): {"mscale": 0.7, "mscale_all_dim": 1.3},
    ("qwen3", False): {"beta_fast": 8, "beta_slow": 2, "truncate": False},
    ("qwen3", True): {"attention_factor": 1.3},
    ("llama", False): {"beta_fast": 16.0, "mscale": 1.2},
    ("llama", True): {"truncate": False, "original_max_position_embeddings": 200},
}


def fields(family, rope, is_tied):
    """Returns config.json: of untied models as of 2024 and 2025, of tied ones as later."""
    theta = 500.0
    scaling = ROPES[rope] | (YARN[family, is_tied] if rope == "yarn" else {})
    found = SIZES | FAMILIES[family] | {"model_type": family, "tie_word_embeddings": is_tied}
    found["architectures"] = [f"{family.capitalize()}ForCausalLM"]
    if is_tied:
        return found | {"rope_parameters": {"rope_type": rope, "rope_theta": theta, **scaling}, "dtype": "float32"}
    key = "type" if rope == "linear" else "rope_type"
    old = None if rope == "default" else {key: rope, **scaling}
    return found | {"rope_theta": theta, "rope_scaling": old, "torch_dtype": "float32"}


CASES = {
    f"{family}-{rope}-{'tied' if is_tied else 'untied'}": fields(family, rope, is_tied)
    for family in FAMILIES
    for rope in ROPES
    for is_tied in (False, True)
}


def shapes(config):
    """Returns the shape of every tensor."""
    width, mlp, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    size = config.get("head_dim") or width // heads
    sizes = {"q": heads * size, "k": (config["num_key_value_heads"] or heads) * size}
    sizes["v"] = sizes["k"]
    found = {"model.embed_tokens.weight": (VOCAB, width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (VOCAB, width)
    for layer in range(config["num_hidden_layers"]):
        block = {f"self_attn.{name}_proj.weight": (rows, width) for name, rows in sizes.items()}
        if config["model_type"] == "qwen2":
            block |= {f"self_attn.{name}_proj.bias": (rows,) for name, rows in sizes.items()}
        if config["model_type"] == "qwen3":
            block |= {"self_attn.q_norm.weight": (size,), "self_attn.k_norm.weight": (size,)}
        block |= {"self_attn.o_proj.weight": (width, sizes["q"]), "mlp.down_proj.weight": (width, mlp)}
        block |= {"mlp.gate_proj.weight": (mlp, width), "mlp.up_proj.weight": (mlp, width)}
        block |= {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return found


def tensors(config, seed):
    """Returns weights, float32: those of norms about 1, matrices such that next tokens are far from uniform."""

    def draw(name, shape):
        rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
        numbers = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            return 1 + 0.3 * numbers
        if name.endswith(".bias"):
            return 0.5 * numbers
        return numbers if name == "model.embed_tokens.weight" else 1.5 * numbers / np.sqrt(shape[-1])

    return {name: draw(name, shape).astype(np.float32) for name, shape in shapes(config).items()}


def write(folder, config, seed, **more):
    """Writes a model as it would come from the Hub; `more` are further tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors(config, seed) | more, folder / "model.safetensors", {"format": "pt"})


# Of logits: one row, some positions of it.
ROW = np.random.default_rng(7).integers(1, VOCAB, 48)
POSITIONS = np.arange(0, 48, 8) + 7
PROMPTS = [np.random.default_rng(length).integers(1, VOCAB, length) for length in (9, 3, 6)]


def padded():
    """Returns the prompts padded on the left, int32 [B, P]."""
    width = max(map(len, PROMPTS))
    return np.stack([np.pad(prompt, (width - len(prompt), 0), constant_values=PAD) for prompt in PROMPTS]).astype("i4")
