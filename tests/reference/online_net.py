"""The correcting networks from their definition, in float64: one prompt at a time."""

import itertools

import numpy as np
from scipy import stats


def grid(num_states):
    """Returns success rates from 1 / (1 + e^6) to 1 / (1 + e^-6), evenly spaced in the logit."""
    return 1 / (1 + np.exp(-np.linspace(-6.0, 6.0, num_states)))


def outcome_probs(rates, group_size):
    """Returns the binomial distribution of m = 0, ..., G for each rate, [G + 1, K]."""
    return stats.binom.pmf(np.arange(group_size + 1)[:, None], group_size, rates)


def softmax(values):
    values = np.exp(values - np.max(values))
    return values / values.sum()


def distribution(params, inputs, offset):
    """Returns probabilities of the rates, [K]: the mean over networks."""
    return distributions(params, inputs, offset).mean(axis=0)


def distributions(params, inputs, offset):
    """Returns probabilities of the rates by every network, [J, K], from parameters [J, W]."""
    sizes = (len(inputs) + len(offset), 32, 32, len(offset) + 1)
    return np.array([distribution_of_one(layers(network, sizes), inputs, offset) for network in params])


def layers(numbers, sizes):
    """Returns weights [outputs, inputs] and biases of every layer, which stand one layer after another."""
    left, found = np.asarray(numbers, np.float64).tolist(), []
    for num_in, num_out in itertools.pairwise(sizes):
        weights = np.array([[left.pop(0) for _ in range(num_in)] for _ in range(num_out)])
        found.append((weights, np.array([left.pop(0) for _ in range(num_out)])))
    assert not left
    return found


def distribution_of_one(network, inputs, offset):
    """Returns softmax of the offset, times what the network says, plus what it says."""
    offset = np.asarray(offset, np.float64)
    values = np.append(np.asarray(inputs, np.float64), 1 + 0.3 * offset)
    *hidden, (last_weights, last_biases) = network
    for weights, biases in hidden:
        values = np.tanh(weights @ values + biases)
    *shifts, gain = last_weights @ values + last_biases
    return softmax((1 + gain) * offset + shifts)


def shared_net_inputs(visits, now, log_odds, features, group, num_groups):
    """Returns what `shared_net` knows of a prompt.

    Args:
      visits: (round, share of correct completions) of its visits so far.
      now: the round that is predicted.
      log_odds: of all prompts, as the network is given it.
      features: of the prompt, standardised.
      group: of the prompt.
      num_groups: M.
    """
    logit = lambda share: np.log((8 * share + 0.5) / (8 * (1 - share) + 0.5))
    own = np.zeros(7)
    if visits:
        average = visits[0][1]
        for _, share in visits[1:]:
            average = 0.5 * average + 0.5 * share
        last_round, last = visits[-1]
        idle = now - last_round - 1
        own[:] = 1, logit(last), logit(average), last == 0, last == 1, np.log(1 + len(visits)), 0.5 * np.log(1 + idle)
    one_hot = [float(group == g) for g in range(num_groups)]
    return np.concatenate([own, [log_odds], features, one_hot])
