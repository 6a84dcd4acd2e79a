"""The hidden Markov model of solve states: emissions, transition priors, filter and smoother."""
