"""The baseline predictors, one prompt at a time, in float64. Slow on purpose; shares no code with dps_jax.

Each has observe({prompt: (successes, count)}), one round, and distribution(prompt), the probabilities of the next
outcome, [G + 1].
"""

import math

import numpy as np
from scipy import integrate, stats


def nearest(successes, count, group_size):
    """The outcome of G nearest to m of another count, halves up; agreement stays agreement, the rest stays inside."""
    if successes in (0, count):
        return group_size if successes else 0
    return min(max(math.floor(successes * group_size / count + 0.5), 1), group_size - 1)


class LastState:
    def __init__(self, num_prompts, group_size, prior_count=0.5):
        self.group_size, self.last = group_size, dict.fromkeys(range(num_prompts), "unseen")
        self.table = {last: np.full(group_size + 1, prior_count) for last in ["unseen", *range(group_size + 1)]}

    def observe(self, visits):
        for n, (m, count) in visits.items():
            outcome = nearest(m, count, self.group_size)
            self.table[self.last[n]][outcome] += 1
            self.last[n] = outcome

    def distribution(self, n):
        counts = self.table[self.last[n]]
        return counts / counts.sum()


class EMAVariance:
    def __init__(self, num_prompts, group_size, decay=0.7):
        self.group_size, self.decay, self.averages = group_size, decay, {}
        self.histogram = np.ones(group_size + 1)

    def population(self):
        return self.histogram / self.histogram.sum()

    def average(self, n):
        """Success rate and reward variance."""
        rates = np.arange(self.group_size + 1) / self.group_size
        means = self.population() @ np.stack([rates, rates * (1 - rates)], axis=1)
        return self.averages.get(n, means)

    def observe(self, visits):
        updated = {}
        for n, (m, count) in visits.items():
            found = np.array([m / count, m * (count - m) / count**2])
            updated[n] = self.decay * self.average(n) + (1 - self.decay) * found
        self.averages.update(updated)
        for m, count in visits.values():
            self.histogram[nearest(m, count, self.group_size)] += 1

    def distribution(self, n):
        own = stats.binom.pmf(np.arange(self.group_size + 1), self.group_size, self.average(n)[0])
        return 0.9 * own + 0.1 * self.population()


class Queue:
    def __init__(self, num_prompts, group_size):
        self.group_size, self.num_prompts, self.round = group_size, num_prompts, 0
        self.visits = {}
        self.histograms = {tier: np.ones(group_size + 1) for tier in ("partial", "unseen", "flat")}

    def tier(self, n):
        return self.visits[n][1] if n in self.visits else "unseen"

    def observe(self, visits):
        for n, (m, count) in visits.items():
            self.histograms[self.tier(n)][nearest(m, count, self.group_size)] += 1
            self.visits[n] = (self.round, "partial" if 0 < m < count else "flat")
        self.round += 1

    def distribution(self, n):
        counts = self.histograms[self.tier(n)]
        return counts / counts.sum()

    def tiers_in_order(self):
        """Sets of prompts of equal rank, first ones first."""
        places = {}
        for n in range(self.num_prompts):
            last = self.visits[n][0] if n in self.visits else 0
            place = {"partial": (0, -last), "unseen": (1, 0), "flat": (2, last)}[self.tier(n)]
            places.setdefault(place, set()).add(n)
        return [places[place] for place in sorted(places)]


class MoPPS:
    def __init__(self, num_prompts, group_size, decay=0.5, prior_successes=1.0, prior_failures=1.0):
        self.group_size, self.decay = group_size, decay
        self.prior = prior_successes, prior_failures
        self.counts = dict.fromkeys(range(num_prompts), self.prior)

    def observe(self, visits):
        for n, (m, count) in visits.items():
            (a, b), (a0, b0) = self.counts[n], self.prior
            mix = lambda old, prior: self.decay * old + (1 - self.decay) * prior
            self.counts[n] = mix(a, a0) + m, mix(b, b0) + count - m

    def distribution(self, n):
        return stats.betabinom.pmf(np.arange(self.group_size + 1), self.group_size, *self.counts[n])


class LogitKalman:
    def __init__(self, num_prompts, group_size, process_noise=0.05, prior_mean=0.0, prior_variance=4.0):
        self.group_size, self.noise = group_size, process_noise
        self.distributions = dict.fromkeys(range(num_prompts), (prior_mean, prior_variance))
        self.seen = set()

    def observe(self, visits):
        for n, (m, count) in visits.items():
            rate = (m + 0.5) / (count + 1)
            found, noise = math.log(rate / (1 - rate)), 1 / ((count + 1) * rate * (1 - rate))
            mean, variance = self.distributions[n]
            precision = 1 / variance + 1 / noise
            self.distributions[n] = (mean / variance + found / noise) / precision, 1 / precision
            self.seen.add(n)
        for n in self.seen:
            self.distributions[n] = self.distributions[n][0], self.distributions[n][1] + self.noise

    def distribution(self, n):
        mean, variance = self.distributions[n]
        sd = math.sqrt(variance)
        logits = np.linspace(mean - 9 * sd, mean + 9 * sd, 4001)
        density = stats.norm.pdf(logits, mean, sd)
        probs = stats.binom.pmf(np.arange(self.group_size + 1)[:, None], self.group_size, 1 / (1 + np.exp(-logits)))
        return integrate.trapezoid(probs * density, logits, axis=1)


class Arcsine:
    """Integrals over angles are sums over the middles of 64 cells; derivatives are those of the log evidence."""

    def __init__(self, num_prompts, group_size, decay=0.99, log_evidence_step=1e-4):
        self.group_size, self.decay, self.step = group_size, decay, log_evidence_step
        self.cell = math.pi / 128
        self.angles = (np.arange(64) + 0.5) * self.cell
        self.round, self.beliefs = 0, {}
        self.drift, self.noise = np.zeros(2), np.array([5e-3, 1e-3])
        self.drift_information, self.noise_information = np.zeros((2, 2)), np.zeros((2, 2))
        self.num_first, self.first_sum, self.first_squares = 4.0, math.pi, 4 * (0.2 + (math.pi / 4) ** 2)

    def num_moves(self, n):
        if n not in self.beliefs:
            return np.zeros(2)
        return np.array([1, self.round - self.beliefs[n][2] - 1])

    def predicted(self, n):
        """Mean before it is clipped to the angles, and variance."""
        if n not in self.beliefs:
            mean = self.first_sum / self.num_first
            return mean, max(self.first_squares / self.num_first - mean**2, self.cell**2)
        mean, variance, _ = self.beliefs[n]
        return mean + self.num_moves(n) @ self.drift, max(variance + self.num_moves(n) @ self.noise, self.cell**2)

    def weights(self, mean, variance, likelihood=1.0):
        weights = np.exp(-((self.angles - mean) ** 2) / (2 * variance)) * likelihood
        return weights / weights.sum()

    def log_evidence(self, mean, variance, likelihood):
        return math.log(self.weights(mean, variance) @ likelihood)

    def observe(self, visits):
        drift_score, noise_score, first = np.zeros(2), np.zeros(2), []
        drift_found, noise_found, beliefs = np.zeros((2, 2)), np.zeros((2, 2)), {}
        for n, (m, count) in visits.items():
            rates = np.sin(self.angles) ** 2
            likelihood = rates**m * (1 - rates) ** (count - m)
            moved, variance = self.predicted(n)
            mean, moves = min(max(moved, 0.0), math.pi / 2), self.num_moves(n)
            found = []
            for weights in (self.weights(mean, variance), self.weights(mean, variance, likelihood)):
                center = weights @ self.angles
                found.append((center, weights @ (self.angles - center) ** 2))
            kept = max(found[1][1], self.cell**2)
            beliefs[n] = found[1][0], kept, self.round
            if n not in self.beliefs:
                first.append((1, found[1][0], kept + found[1][0] ** 2))
                continue
            step = self.step
            evidence = lambda d, s: self.log_evidence(mean + d, variance * (1 + s), likelihood)  # noqa: B023
            by_mean = (evidence(step, 0) - evidence(-step, 0)) / (2 * step)
            by_variance = (evidence(0, step) - evidence(0, -step)) / (2 * step * variance)
            free = moves if moved == mean else np.zeros(2)
            drift_score += free * by_mean
            drift_found += np.outer(free, free) * max(found[0][1] - found[1][1], 0) / variance**2
            one = moves * self.noise * by_variance
            noise_score += one
            noise_found += np.outer(one, one)
        self.beliefs.update(beliefs)
        self.round += 1
        self.drift_information = self.decay * self.drift_information + drift_found
        self.noise_information = self.decay * self.noise_information + noise_found
        self.drift = self.drift + np.linalg.solve(self.drift_information + 2500 * np.eye(2), drift_score)
        self.drift = np.clip(self.drift, -0.1, 0.1)
        log_step = np.linalg.solve(self.noise_information + 4 * np.eye(2), noise_score)
        self.noise = np.clip(self.noise * np.exp(np.clip(log_step, -0.5, 0.5)), 1e-6, 0.3)
        if first:
            sums = np.sum(first, axis=0)
            self.num_first = self.decay * self.num_first + sums[0]
            self.first_sum = self.decay * self.first_sum + sums[1]
            self.first_squares = self.decay * self.first_squares + sums[2]

    def distribution(self, n):
        moved, variance = self.predicted(n)
        weights = self.weights(min(max(moved, 0.0), math.pi / 2), variance)
        of_angles = stats.binom.pmf(np.arange(self.group_size + 1)[:, None], self.group_size, np.sin(self.angles) ** 2)
        return of_angles @ weights
