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
    """One dictionary entry per prompt, as a person would write METHOD down."""

    def __init__(self, num_prompts, initial_probs, prior_counts, decay, likelihood):
        self.num_prompts = num_prompts
        self.prior_counts = np.array(prior_counts, np.float64)
        self.num_states = len(initial_probs)
        self.decay = decay
        self.likelihood = likelihood
        self.beliefs = {n: np.array(initial_probs, np.float64) for n in range(num_prompts)}
        self.predictions = {n: np.array(initial_probs, np.float64) for n in range(num_prompts)}
        self.counts = {n: self.prior_counts.copy() for n in range(num_prompts)}
        self.num_impossible = 0

    def matrix(self, prompt):
        rows = []
        for row in self.counts[prompt]:
            rows.append([entry / sum(row) for entry in row])
        return rows

    def observe(self, outcomes):
        """outcomes: {prompt: (successes, count)}"""
        num_states = self.num_states
        for prompt in range(self.num_prompts):
            belief, prediction, matrix = self.beliefs[prompt], self.predictions[prompt], self.matrix(prompt)
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
            self.counts[prompt] = self.decay * self.counts[prompt] + (1 - self.decay) * self.prior_counts + soft_counts
            matrix = self.matrix(prompt)
            self.beliefs[prompt] = np.array(filtered, np.float64)
            self.predictions[prompt] = np.array(
                [sum(filtered[i] * matrix[i][j] for i in range(num_states)) for j in range(num_states)]
            )

    def predicted_probs(self):
        return np.stack([self.predictions[n] for n in range(self.num_prompts)], axis=-1)

    def filtered_probs(self):
        return np.stack([self.beliefs[n] for n in range(self.num_prompts)], axis=-1)

    def concentration(self):
        return np.stack([self.counts[n] for n in range(self.num_prompts)], axis=-1)
