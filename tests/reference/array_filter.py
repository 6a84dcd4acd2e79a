"""METHOD section 1 for the exact emission in float64 numpy over all prompts at once, for runs too long for a loop."""

import numpy as np


class ArrayFilter:
    """Prompts first: beliefs [N, K], counts [N, K, K]."""

    def __init__(self, num_prompts, initial_probs, prior_counts, decay):
        self.prior_counts = np.asarray(prior_counts, np.float64)
        self.decay = decay
        self.belief = np.tile(np.asarray(initial_probs, np.float64), (num_prompts, 1))
        self.prediction = self.belief.copy()
        self.counts = np.tile(self.prior_counts, (num_prompts, 1, 1))

    def observe(self, ids, states):
        num_states = self.prior_counts.shape[0]
        onehot = np.eye(num_states)[states]
        counts = self.counts[ids]
        matrix = counts / counts.sum(axis=2, keepdims=True)
        joint = self.belief[ids][:, :, None] * matrix * onehot[:, None, :]
        joint /= joint.sum(axis=(1, 2), keepdims=True)
        self.counts *= self.decay
        self.counts += (1 - self.decay) * self.prior_counts
        self.counts[ids] += joint
        self.belief = self.prediction
        self.belief[ids] = onehot
        weights = self.belief / self.counts.sum(axis=2)
        self.prediction = np.einsum("ni,nij->nj", weights, self.counts)

    @property
    def predicted_probs(self):
        return self.prediction.T
