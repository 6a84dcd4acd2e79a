"""Derivatives of what the filter predicts, against difference quotients of the float64 loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax.hmm import emissions, filtering
from dps_jax.hmm._transitions import resolve_prior
from tests.hmm.test_filtering import loop_of, random_prior, random_round

NUM_PROMPTS, NUM_OBSERVED = 5, 3
WEIGHTS = np.random.default_rng(1).normal(size=(3, NUM_PROMPTS))
VALUE_WEIGHTS = np.random.default_rng(2).normal(size=NUM_PROMPTS)
GROUP_IDS = np.array([0, 1, -1, 1, 0])


def random_rounds(num_rounds, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        map(np.stack, zip(*(random_round(rng, NUM_PROMPTS, NUM_OBSERVED) for _ in range(num_rounds)), strict=True))
    )


def read(predicted_probs, filtered_probs, concentration, predicted_value):
    """Returns one number that depends on all that can be read from a state."""
    return (
        (WEIGHTS * predicted_probs).sum()
        + (WEIGHTS[::-1] * filtered_probs).sum()
        + 0.1 * (WEIGHTS[None] * concentration).sum()
        + (VALUE_WEIGHTS * predicted_value).sum()
    )


def of_filter(rounds, emission):
    """Returns the function of a prior, by the filter."""

    def fn(prior):
        state = filtering.init(NUM_PROMPTS, prior, group_ids=GROUP_IDS if prior.groups else None)
        step = lambda state, outcome: (filtering.observe(state, emission, *outcome), None)
        state, _ = jax.lax.scan(step, state, rounds)
        readings = filtering.predicted_probs, filtering.filtered_probs, filtering.concentration
        return read(*(reading(state) for reading in readings), state.predicted_value)

    return fn


def of_loop(rounds, prior):
    """Returns the same number by the float64 loop."""
    oracle = loop_of(prior, NUM_PROMPTS, GROUP_IDS if prior.groups else None)
    for ids, successes, counts in zip(*rounds, strict=True):
        oracle.observe({int(n): (int(m), int(g)) for n, m, g in zip(ids, successes, counts, strict=True)})
    value = emissions.informative_probs(prior.emission)
    predicted = oracle.predicted_probs()
    return read(predicted, oracle.filtered_probs(), oracle.concentration(), value @ predicted)


def quotient(rounds, prior, leaf, index, step=1e-5):
    """Returns the difference quotient with respect to an entry of a leaf of the prior; one-sided at 0."""
    leaves, structure = jax.tree.flatten(prior)
    leaves = [np.array(array, np.float64) for array in leaves]
    places = max(leaves[leaf][index] - step, 0.0), leaves[leaf][index] + step
    ends = []
    for place in places:
        leaves[leaf][index] = place
        # Initial beliefs, which have one axis, are normalised by the filter.
        moved = [array / array.sum() if array.ndim == 1 else array.copy() for array in leaves]
        ends.append(of_loop(rounds, jax.tree.unflatten(structure, moved)))
    return (ends[1] - ends[0]) / (places[1] - places[0])


@pytest.mark.parametrize("structure", ["plain", "both"])
@pytest.mark.parametrize("kind", ["exact", "binomial"])
def test_gradient_with_respect_to_the_prior(kind, structure):
    emission = emissions.exact(3) if kind == "exact" else emissions.binomial([0.05, 0.4, 0.9])
    num_groups, has_trained = (0, False) if structure == "plain" else (2, True)
    prior = random_prior(np.random.default_rng(5), 3, num_groups, has_trained, 0.6, emission)
    rounds = random_rounds(5)
    gradient = jax.jit(jax.grad(of_filter(rounds, emission)))
    rng = np.random.default_rng(0)
    for decay in (0.0, 0.02, 0.6, 1.0):
        groups = tuple(dataclasses.replace(group, decay=decay) for group in prior.groups)
        prior = dataclasses.replace(prior, decay=decay, groups=groups)
        for leaf, grad in enumerate(jax.tree.leaves(gradient(jax.tree.map(jnp.float32, prior)))):
            if grad.ndim == 0 and leaf != 2:
                continue  # The decay of a group is that of the whole, which is the one that is read.
            for index in rng.permutation(list(np.ndindex(grad.shape)))[:3] if grad.ndim else [()]:
                expected = quotient(rounds, prior, leaf, tuple(index))
                np.testing.assert_allclose(grad[tuple(index)], expected, rtol=3e-3, atol=3e-3)


@pytest.mark.parametrize("prior_name", ["progress", "local"])
def test_forward_and_reverse_derivatives_over_many_rounds(prior_name):
    """At a decay of 0.6 the counts are rescaled after 54 rounds; a certain start makes odds of 1e30."""
    rounds, prior = random_rounds(70, seed=3), resolve_prior(prior_name, initial=0, decay=0.6)
    fn = of_filter(rounds, prior.emission)
    at_decay = lambda decay: fn(dataclasses.replace(prior, decay=decay))
    with jax.debug_nans(True):
        value, forward = jax.jit(lambda decay: jax.jvp(at_decay, (decay,), (jnp.ones(()),)))(0.6)
        reverse = jax.jit(jax.grad(at_decay))(0.6)
    expected = quotient(rounds, prior, 2, ())
    assert abs(expected) > 0.1
    np.testing.assert_allclose(value, of_loop(rounds, prior), rtol=1e-4)
    np.testing.assert_allclose([forward, reverse], expected, rtol=3e-3)


def test_derivatives_start_at_any_state():
    """Rounds one by one, with derivatives from the third on: as `state._replace(decay=...)` gives them."""
    rounds, prior = random_rounds(5), random_prior(np.random.default_rng(5))
    state = filtering.init(NUM_PROMPTS, prior)
    observe = lambda state, index: filtering.observe(state, prior.emission, *(column[index] for column in rounds))
    for index in range(2):
        state = observe(state, index)

    @jax.jit
    def fn(decay, prior_counts):
        later = state._replace(decay=decay, prior_counts=prior_counts)
        for index in range(2, 5):
            later = observe(later, index)
        return jnp.sum(jnp.asarray(WEIGHTS, jnp.float32) * filtering.predicted_probs(later))

    with jax.numpy_dtype_promotion("strict"):
        gradients = jax.grad(fn, argnums=(0, 1))(state.decay, state.prior_counts)
    tangents = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(0).normal(size=leaf.shape)), gradients)
    value, forward = jax.jvp(fn, (state.decay, state.prior_counts), tangents)
    np.testing.assert_allclose(value, fn(state.decay, state.prior_counts), rtol=1e-6)
    inner = sum(jax.tree.leaves(jax.tree.map(lambda one, other: jnp.sum(one * other), gradients, tangents)))
    np.testing.assert_allclose(forward, inner, rtol=1e-4)
    ends = [
        fn(*(a + sign * 2e-3 * t for a, t in zip((state.decay, state.prior_counts), tangents, strict=True)))
        for sign in (1, -1)
    ]
    np.testing.assert_allclose(forward, (ends[0] - ends[1]) / 4e-3, rtol=2e-2)


def test_derivatives_that_there_are_not_are_refused():
    prior, rounds = resolve_prior("progress"), random_rounds(1)
    outcome = [column[0] for column in rounds]
    state = filtering.init(NUM_PROMPTS, prior, is_compact=True)
    at_decay = lambda decay: filtering.observe(state._replace(decay=decay), prior.emission, *outcome).predicted_value
    with pytest.raises(NotImplementedError, match="observe: expected float counts to differentiate, got compact"):
        jax.jvp(at_decay, (0.7,), (1.0,))
    with pytest.raises(NotImplementedError, match="with_prior: expected a call without differentiation"):
        jax.jvp(lambda decay: filtering.with_prior(state, dataclasses.replace(prior, decay=decay)), (0.7,), (1.0,))
