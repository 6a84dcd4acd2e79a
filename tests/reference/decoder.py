"""One sequence through a Qwen2 or Qwen3 decoder in float64 NumPy, from tensors under Hugging Face's names.

No cache, no batch, no padding: every token looks at every earlier one anew, head by head.
"""

import numpy as np


def rms_norm(rows, scale, epsilon):
    return rows / np.sqrt(np.mean(rows**2, axis=-1, keepdims=True) + epsilon) * scale


def rotate(row, position, theta):
    """Turns one head [D] at one position: dimensions i and i + D / 2 are a complex number."""
    half = row.size // 2
    pairs = row[:half] + 1j * row[half:]
    turned = pairs * np.exp(1j * position * theta ** (-np.arange(half) / half))
    return np.concatenate([turned.real, turned.imag])


def attention(weights, config, hidden):
    """Returns what the heads of one layer add to the residual stream [L, hidden_size]."""
    size, per_kv = config.head_dim, config.num_heads // config.num_kv_heads

    def project(name, head, norm):
        rows = hidden @ weights[f"self_attn.{name}.weight"].T
        if f"self_attn.{name}.bias" in weights:
            rows = rows + weights[f"self_attn.{name}.bias"]
        rows = rows[:, head * size : (head + 1) * size]
        if norm is not None and f"self_attn.{norm}.weight" in weights:
            rows = rms_norm(rows, weights[f"self_attn.{norm}.weight"], config.norm_epsilon)
        if norm is not None:
            rows = np.stack([rotate(row, position, config.rope_theta) for position, row in enumerate(rows)])
        return rows

    heads = []
    for head in range(config.num_heads):
        queries = project("q_proj", head, "q_norm")
        keys = project("k_proj", head // per_kv, "k_norm")
        values = project("v_proj", head // per_kv, None)
        rows = []
        for position in range(len(hidden)):
            scores = keys[: position + 1] @ queries[position] / np.sqrt(size)
            probs = np.exp(scores - scores.max())
            rows.append(probs / probs.sum() @ values[: position + 1])
        heads.append(np.stack(rows))
    return np.concatenate(heads, axis=1) @ weights["self_attn.o_proj.weight"].T


def logits(tensors, config, tokens):
    """Returns logits of the token after each of `tokens` [L], float64 [L, V]."""
    tensors = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    hidden = tensors["model.embed_tokens.weight"][np.asarray(tokens)]
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        weights = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        normed = rms_norm(hidden, weights["input_layernorm.weight"], config.norm_epsilon)
        hidden = hidden + attention(weights, config, normed)
        normed = rms_norm(hidden, weights["post_attention_layernorm.weight"], config.norm_epsilon)
        gate = normed @ weights["mlp.gate_proj.weight"].T
        up = normed @ weights["mlp.up_proj.weight"].T
        hidden = hidden + (gate / (1 + np.exp(-gate)) * up) @ weights["mlp.down_proj.weight"].T
    output = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    return rms_norm(hidden, tensors["model.norm.weight"], config.norm_epsilon) @ output.T


def log_softmax(rows):
    rows = rows - rows.max(axis=-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))


def completion_log_probs(tensors, config, prompt, completion, temperature=1.0):
    """Returns log-probs and entropies of every token of a completion [T] of an unpadded prompt, each [T]."""
    tokens = np.concatenate([prompt, completion]).astype(int)
    rows = log_softmax(logits(tensors, config, tokens)[len(prompt) - 1 : -1] / temperature)
    return rows[np.arange(len(completion)), tokens[len(prompt) :]], -(np.exp(rows) * rows).sum(axis=1)
