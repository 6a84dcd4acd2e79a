"""METHOD section 1, one prompt and one state at a time, in float64. Slow on purpose; shares no code with dps_jax."""

import numpy as np

# What follows counts as impossible in float32; here it only decides what is *counted*, the numbers use evidence > 0.
SMALLEST_EVIDENCE = 1e-25


def exact_likelihood(num_states, successes, count):
    likelihood = [0.0] * num_states
    if num_states == 2:
        state = 1 if 0 < successes < count else 0
    elif successes == 0:
        state = 0
    elif successes == count:
        state = num_states - 1
    else:
        state = 1
        while state < num_states - 2 and successes * (num_states - 2) >= state * count:
            state += 1
    likelihood[state] = 1.0
    return likelihood


def binomial_likelihood(rates, successes, count):
    return [rate**successes * (1 - rate) ** (count - successes) for rate in rates]


class LoopFilter:
    """One dictionary entry per prompt, as a person would write METHOD down.

    A prior for trained prompts is a second table of counts for every prompt, C^trained, that forgets towards its own
    C_0 and gets the same soft counts; the move out of a round uses the table named by what happened in that round.
    """

    def __init__(
        self,
        num_prompts,
        initial_probs,
        prior_counts,
        decay,
        likelihood,
        trained_counts=None,
        groups=(),
        group_ids=None,
    ):
        """groups: (initial_probs, prior_counts, trained_counts) each; group_ids: one per prompt, -1 for no group."""
        self.num_prompts = num_prompts
        self.num_states = len(initial_probs)
        self.likelihood = likelihood
        self.group_ids = [-1] * num_prompts if group_ids is None else list(group_ids)
        self.num_impossible = 0
        self.num_rounds = 0
        self.set_prior(initial_probs, prior_counts, decay, trained_counts, groups)
        self.counts = {n: {kind: table.copy() for kind, table in self.priors[n].items()} for n in range(num_prompts)}
        self.last = {n: "idle" for n in range(num_prompts)}
        self.seen = set()
        self.beliefs = {n: self.initials[n].copy() for n in range(num_prompts)}
        self.predictions = {n: self.initials[n].copy() for n in range(num_prompts)}

    def set_prior(self, initial_probs, prior_counts, decay, trained_counts=None, groups=()):
        self.decay, self.initials, self.priors = decay, {}, {}
        for prompt, group in enumerate(self.group_ids):
            population = (initial_probs, prior_counts, trained_counts)
            initial, idle, trained = groups[group] if group >= 0 and groups else population
            self.initials[prompt] = np.array(initial, np.float64)
            self.priors[prompt] = {"idle": np.array(idle, np.float64)}
            if trained is not None:
                self.priors[prompt]["trained"] = np.array(trained, np.float64)

    def replace_prior(self, *prior):
        """Between two rounds: what was learned is moved to the new prior; who was never seen starts over under it."""
        before = self.priors
        self.set_prior(*prior)
        for prompt in range(self.num_prompts):
            for kind, table in self.priors[prompt].items():
                self.counts[prompt][kind] = self.counts[prompt][kind] - before[prompt][kind] + table
            if prompt not in self.seen:
                self.beliefs[prompt] = self.initials[prompt].copy()
                for _ in range(self.num_rounds - 1):
                    self.beliefs[prompt] = self.move(self.beliefs[prompt], self.priors[prompt]["idle"])
            self.predictions[prompt] = self.beliefs[prompt]
            if self.num_rounds > 0:
                self.predictions[prompt] = self.move(self.beliefs[prompt], self.counts[prompt][self.last[prompt]])

    def matrix(self, counts):
        rows = []
        for row in counts:
            rows.append([entry / sum(row) for entry in row])
        return rows

    def move(self, belief, counts):
        states, matrix = range(self.num_states), self.matrix(counts)
        return np.array([sum(belief[i] * matrix[i][j] for i in states) for j in states])

    def observe(self, outcomes):
        """outcomes: {prompt: (successes, count)}"""
        num_states = self.num_states
        for prompt in range(self.num_prompts):
            belief, prediction = self.beliefs[prompt], self.predictions[prompt]
            matrix = self.matrix(self.counts[prompt][self.last[prompt]])
            soft_counts = np.zeros((num_states, num_states))
            filtered = prediction
            if prompt in outcomes:
                seen = self.likelihood(*outcomes[prompt])
                evidence = 0.0
                for i in range(num_states):
                    for j in range(num_states):
                        soft_counts[i, j] = belief[i] * matrix[i][j] * seen[j]
                        evidence += soft_counts[i, j]
                self.num_impossible += evidence <= SMALLEST_EVIDENCE
                stands = np.array(seen) / sum(seen)
                soft_counts = soft_counts / evidence if evidence > 0 else np.outer(belief, stands)
                posterior = np.array([prediction[j] * seen[j] for j in range(num_states)])
                filtered = posterior / posterior.sum() if posterior.sum() > 0 else stands
                self.seen.add(prompt)
            for kind, counts in self.counts[prompt].items():
                prior_counts = self.priors[prompt][kind]
                self.counts[prompt][kind] = self.decay * counts + (1 - self.decay) * prior_counts + soft_counts
            is_trained = prompt in outcomes and "trained" in self.counts[prompt]
            self.last[prompt] = "trained" if is_trained else "idle"
            self.beliefs[prompt] = np.array(filtered, np.float64)
            self.predictions[prompt] = self.move(filtered, self.counts[prompt][self.last[prompt]])
        self.num_rounds += 1

    def predicted_probs(self):
        return np.stack([self.predictions[n] for n in range(self.num_prompts)], axis=-1)

    def filtered_probs(self):
        return np.stack([self.beliefs[n] for n in range(self.num_prompts)], axis=-1)

    def concentration(self):
        return np.stack([self.counts[n][self.last[n]] for n in range(self.num_prompts)], axis=-1)
