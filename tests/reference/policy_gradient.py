"""The policy gradient of a tabular softmax policy, one token at a time, in float64. Shares no code with dps_jax.

The policy is a table of logits [N, T, V]: the first token of a prompt says which row, and tokens are independent.
"""

import math

import numpy as np


def token_distributions(logits, prompt):
    """Returns probabilities [T, V]."""
    rows = np.asarray(logits, np.float64)[prompt]
    weights = np.exp(rows - rows.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def log_probs_and_entropies(logits, prompts, completions):
    """Returns two arrays [B, G, T]."""
    log_probs, entropies = np.zeros(completions.shape), np.zeros(completions.shape)
    for b, g, t in np.ndindex(completions.shape):
        probs = token_distributions(logits, prompts[b, 0])[t]
        log_probs[b, g, t] = math.log(probs[completions[b, g, t]])
        entropies[b, g, t] = -sum(p * math.log(p) for p in probs)
    return log_probs, entropies


def sample_std(values):
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def advantages(name, rewards, is_used):
    """Returns a table [B, G]; rewards of NaN are not there, and equal ones are equal exactly."""
    result = np.zeros(np.shape(rewards))
    everything = [float(r) for b, row in enumerate(rewards) if is_used[b] for r in row if not math.isnan(r)]
    for b, whole_row in enumerate(np.asarray(rewards, np.float64)):
        row = [r for r in whole_row if not math.isnan(r)]
        for g, reward in enumerate(whole_row):
            if not is_used[b] or math.isnan(reward) or (name != "reinforce++" and len(row) < 2):
                continue
            others = [r for other, r in enumerate(whole_row) if other != g and not math.isnan(r)]
            if name == "grpo":
                std = sample_std(row)
                result[b, g] = (reward - sum(row) / len(row)) / std if std > 0 else 0.0
            elif name == "dr-grpo":
                result[b, g] = reward - sum(row) / len(row)
            elif name == "rloo":
                result[b, g] = reward - sum(others) / len(others)
            elif name == "reinforce++":
                std = sample_std(everything)
                result[b, g] = (reward - sum(everything) / len(everything)) / std if std > 0 else 0.0
    return result


def counted_groups(loss, is_used, table):
    """Returns which groups are in the mean that a loss is: [B] of bools, by the advantages [B, G]."""
    return [
        bool(used and (loss != "token-mean-signal" or any(row != 0))) for used, row in zip(is_used, table, strict=True)
    ]


def token_weights(loss, mask, is_used):
    num_rows = sum(is_used) * mask.shape[1]
    num_tokens = sum(mask[b].sum() for b in range(len(is_used)) if is_used[b])
    weights = np.zeros(mask.shape)
    for b, g, t in np.ndindex(mask.shape):
        if is_used[b] and mask[b, g, t]:
            if loss in ("token-mean", "token-mean-signal"):
                weights[b, g, t] = 1 / num_tokens
            elif loss == "sequence-mean":
                weights[b, g, t] = 1 / (num_rows * mask[b, g].sum())
            elif loss == "fixed-length":
                weights[b, g, t] = 1 / (num_rows * mask.shape[2])
    return weights


def penalty(kl, log_prob, ref_log_prob):
    """Returns the estimate and its derivative by log_prob."""
    if kl == "k1":
        return log_prob - ref_log_prob, 1.0
    if kl == "k2":
        return (log_prob - ref_log_prob) ** 2 / 2, log_prob - ref_log_prob
    ratio = math.exp(ref_log_prob - log_prob)
    return ratio - 1 - math.log(ratio), 1 - ratio


def loss_and_gradient(
    logits, batch, advantage_table, weights, *, clip_low, clip_high, kl_coef=0.0, kl="k3", entropy_coef=0.0, ref=None
):
    """Returns the loss and its gradient [N, T, V]; `advantage_table` [B, G] and `weights` [B, G, T] are constants."""
    total, gradient = 0.0, np.zeros(np.shape(logits))
    for b, g, t in np.ndindex(np.shape(batch.mask)):
        weight = weights[b, g, t]
        if weight == 0:
            continue
        prompt, token = batch.prompts[b, 0], batch.completions[b, g, t]
        probs = token_distributions(logits, prompt)[t]
        log_prob = math.log(probs[token])
        ratio = math.exp(log_prob - float(batch.old_log_probs[b, g, t]))
        advantage = advantage_table[b, g]
        unclipped, clipped = ratio * advantage, min(max(ratio, 1 - clip_low), 1 + clip_high) * advantage
        total -= weight * min(unclipped, clipped)
        slope = -weight * ratio * advantage if unclipped <= clipped else 0.0
        if kl_coef:
            value, derivative = penalty(kl, log_prob, float(ref[b, g, t]))
            total += weight * kl_coef * value
            slope += weight * kl_coef * derivative
        gradient[prompt, t] -= slope * probs
        gradient[prompt, t, token] += slope
        entropy = -sum(p * math.log(p) for p in probs)
        total -= weight * entropy_coef * entropy
        gradient[prompt, t] += weight * entropy_coef * np.array([p * (math.log(p) + entropy) for p in probs])
    return total, gradient


def finite_differences(fn, logits, step=1e-5):
    logits = np.asarray(logits, np.float64)
    gradient = np.zeros(logits.shape)
    for place in np.ndindex(logits.shape):
        up, down = logits.copy(), logits.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (fn(up) - fn(down)) / (2 * step)
    return gradient


class AdamW:
    """Adam with decoupled weight decay, on gradients clipped by their norm."""

    def __init__(self, shape, learning_rate, max_norm, weight_decay):
        self.first, self.second, self.num_steps = np.zeros(shape), np.zeros(shape), 0
        self.learning_rate, self.max_norm, self.weight_decay = learning_rate, max_norm, weight_decay

    def step(self, params, gradient):
        gradient = gradient * min(1.0, self.max_norm / max(math.sqrt((gradient**2).sum()), 1e-300))
        self.num_steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        direction = self.first / (1 - 0.9**self.num_steps)
        direction = direction / (np.sqrt(self.second / (1 - 0.999**self.num_steps)) + 1e-8)
        return params - self.learning_rate * (direction + self.weight_decay * params)
