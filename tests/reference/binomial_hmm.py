"""The binomial HMM from its definition: one prompt and one round at a time, in float64, with forward and backward sums.

Nothing here knows of powers of matrices or of derivatives: a prompt that was idle for nine rounds is moved nine times,
and how often a move was made follows from forward and backward probabilities over the rounds since its last visit.
"""

import numpy as np
from scipy import stats

MOVES = ("idle", "flat", "partial")


class Member:
    """Expected counts under one decay."""

    def __init__(self, num_groups, num_states, decay):
        self.initial = np.zeros((num_groups + 1, num_states))
        self.moves = np.zeros((3, num_states, num_states))
        self.decay, self.log_weight = decay, 0.0


class BinomialHMM:
    def __init__(self, num_prompts, groups=None, *, rates, decays, constants, group_size):
        self.rates, self.group_size, self.constants = np.asarray(rates), group_size, constants
        self.num_states = self.rates.size
        self.groups = np.zeros(num_prompts, int) if groups is None else np.asarray(groups)
        num_groups = 0 if groups is None else int(self.groups.max()) + 1
        self.groups = np.where(self.groups < 0, num_groups, self.groups)
        self.members = [Member(num_groups, self.num_states, decay) for decay in decays]
        self.belief, self.visit, self.kind, self.round = {}, {}, {}, 0

    def prior_row(self, kind, i):
        c = self.constants
        row = np.full(self.num_states, c["anywhere"] / self.num_states)
        for j in (i - 1, i + 1):
            if 0 <= j < self.num_states:
                row[j] += c["neighbours"][kind]
        row[i] += 1 - row.sum()
        return c["move_count"] * row

    def matrix(self, member, kind):
        c = self.constants
        rows = []
        for i in range(self.num_states):
            near = np.zeros(self.num_states)
            for other in range(self.num_states):
                weight = np.exp(-0.5 * ((i - other) / c["row_width"]) ** 2)
                for j in range(self.num_states):
                    place = other + (j - i)  # the same distance from there
                    if 0 <= place < self.num_states:
                        near[j] += weight * member.moves[kind, other, place]
            near += self.prior_row(kind, i)
            row = member.moves[kind, i] + c["row_count"] * near / near.sum()
            rows.append(row / row.sum())
        return np.array(rows)

    def initial(self, member, group):
        c = self.constants
        population = member.initial.sum(axis=0) + c["population_count"] / self.num_states
        population /= population.sum()
        if group == len(member.initial) - 1:
            return population
        distribution = member.initial[group] + c["group_count"] * population
        return distribution / distribution.sum()

    def path(self, member, prompt):
        """Returns the matrices from the last visit to this round, with their kinds."""
        matrices = [(self.kind[prompt], self.matrix(member, self.kind[prompt]))]
        idle = self.matrix(member, 0)
        return matrices + [(0, idle)] * (self.round - self.visit[prompt] - 1)

    def predicted(self, member, prompt):
        if prompt not in self.belief:
            return self.initial(member, self.groups[prompt])
        belief = self.belief[prompt]
        for _, matrix in self.path(member, prompt):
            belief = belief @ matrix
        return belief

    def weights(self):
        logs = np.array([member.log_weight for member in self.members])
        weights = np.exp(logs - logs.max())
        return weights / weights.sum()

    def mixed(self, prompt):
        return sum(w * self.predicted(m, prompt) for w, m in zip(self.weights(), self.members, strict=True))

    def outcome_probs(self, prompt):
        return stats.binom.pmf(np.arange(self.group_size + 1)[:, None], self.group_size, self.rates) @ self.mixed(
            prompt
        )

    def observe(self, ids, successes, counts):
        beliefs = {prompt: self.mixed(prompt) for prompt in ids}
        for member in self.members:
            initial, moves, gain = np.zeros_like(member.initial), np.zeros_like(member.moves), 0.0
            idle = self.matrix(member, 0)
            for prompt, m, n in zip(ids, successes, counts, strict=True):
                likelihood = self.rates**m * (1 - self.rates) ** (n - m)
                # The fast code scales likelihoods, which changes no ratio between members.
                likelihood = likelihood / likelihood.max()
                if prompt not in self.belief:
                    joint = self.initial(member, self.groups[prompt]) * likelihood
                    initial[self.groups[prompt]] += joint / joint.sum()
                    gain += np.log(joint.sum())
                    continue
                path = self.path(member, prompt)
                forward = [self.belief[prompt]]
                for _, matrix in path:
                    forward.append(forward[-1] @ matrix)
                backward = [likelihood]
                for _, matrix in reversed(path):
                    backward.append(matrix @ backward[-1])
                backward.reverse()
                evidence = forward[-1] @ likelihood
                for step, (kind, matrix) in enumerate(path):
                    moves[kind] += forward[step][:, None] * matrix * backward[step + 1] / evidence
                gain += np.log(evidence)
            member.initial = member.decay * (member.initial + initial) @ idle
            member.moves = member.decay * (member.moves + moves)
            member.log_weight = self.constants["weight_decay"] * member.log_weight + gain
        for prompt, m, n in zip(ids, successes, counts, strict=True):
            posterior = beliefs[prompt] * self.rates**m * (1 - self.rates) ** (n - m)
            self.belief[prompt] = posterior / posterior.sum()
            self.visit[prompt], self.kind[prompt] = self.round, 2 if 0 < m < n else 1
        self.round += 1
