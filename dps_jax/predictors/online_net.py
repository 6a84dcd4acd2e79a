"""Small networks that correct laws over success rates, trained online on the visits of all prompts.

The law of a prompt is softmax((1 + gain) * offset + shifts) over rates on a grid, under which m of G is a mixture of
binomials, for any G. The offset is the log of what is believed without the network; gain and shifts are what a network
makes of the inputs and the offset. Its last layer begins at zero: at first it corrects nothing. After every round it
takes some steps of Adam on the log loss of that round's visits and of a sample of those before it, with inputs as they
were when the outcome was still unknown. Predictions are made with a moving average of the parameters, which allows
larger steps than the parameters themselves would bear, and are the mean over a few networks that differ by chance and
in how many rounds they are averaged over.

Source: averaged iterates, Polyak and Juditsky, SIAM J. Control Optim. 1992; weights that decay apart from the gradient,
Loshchilov and Hutter, arXiv 1711.05101; means over networks, Lakshminarayanan et al., arXiv 1612.01474.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

# Visits that are remembered, and how many of them are looked at beside a round's own in a step.
_MEMORY_SIZE, _SAMPLE_SIZE = 4096, 256
_NUM_STEPS = 8
_NUM_HIDDEN = 32
# Log probabilities are inputs too, scaled to the size of the others.
_OFFSET_SCALE = 0.3
# Much above the rounding of a gradient that is 0, as that of the gain is where the offset is even; of which Adam would
# make whole steps otherwise, another one on every machine.
_ADAM_EPS = 1e-6
_SMALLEST_PROB = 1e-6


class Rows(NamedTuple):
    """Some visits: inputs [P, D], offsets [P, K], successes and failures, float32 [P], both 0 for padding."""

    inputs: jax.Array
    offsets: jax.Array
    successes: jax.Array
    failures: jax.Array


class NetState(NamedTuple):
    """The networks and what they were trained on lately.

    Attributes:
      params: (weights, biases) of every layer, moving average over rounds; predictions are made with these. Here and
        below, leaves have the networks on their first axis.
      trained: the parameters themselves.
      opt_state: of Adam.
      memory: `Rows` of the last visits, in a ring of fixed size.
      num_visits: that were put into the ring so far, int32 scalar.
    """

    params: Any
    trained: Any
    opt_state: Any
    memory: Rows
    num_visits: jax.Array


class OnlineNet(NamedTuple):
    """Pure functions.

    Attributes:
      init: () -> `NetState`.
      laws: (state, inputs [D], offset [K]) -> probabilities of the rates by every network, [E, K]; to be averaged.
      learn: (state, `Rows` of a round, round) -> state.
    """

    init: Callable[[], NetState]
    laws: Callable[[NetState, jax.Array, jax.Array], jax.Array]
    learn: Callable[[NetState, Rows, jax.Array], NetState]


def log_offset(probs: jax.Array) -> jax.Array:
    """Returns probabilities as an offset."""
    return jnp.log(jnp.maximum(probs, _SMALLEST_PROB))


def online_net(
    num_inputs: int,
    rates: np.ndarray,
    *,
    learning_rate: float = 6e-3,
    weight_decay: float = 0.1,
    average_decays: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9),
    seed: int = 0,
) -> OnlineNet:
    """Returns the networks.

    Args:
      num_inputs: D.
      rates: on the grid, inside (0, 1), [K].
      learning_rate: of Adam.
      weight_decay: all parameters shrink by this times the learning rate in a step, towards the offset alone.
      average_decays: share of the averaged parameters that survives a round, of every network, [E]; less in the first
        rounds, which are averaged evenly.
      seed: of the first parameters and of the samples.
    """
    num_states = rates.size
    sizes = (num_inputs + num_states, _NUM_HIDDEN, _NUM_HIDDEN, num_states + 1)
    log_rates, log_rests = np.log(rates), np.log1p(-rates)
    num_nets = len(average_decays)
    optimizer = optax.adamw(learning_rate, eps=_ADAM_EPS, weight_decay=weight_decay)

    def first_params(key: jax.Array) -> Any:
        *hidden, last = itertools.pairwise(sizes)
        keys = jax.random.split(key, len(hidden))
        draw = lambda key, num_in, num_out: jax.random.normal(key, (num_out, num_in), jnp.float32) / num_in**0.5
        zeros = lambda *shape: jnp.zeros(shape, jnp.float32)
        params = [(draw(key, *shape), zeros(shape[1])) for key, shape in zip(keys, hidden, strict=True)]
        return [*params, (zeros(*last[::-1]), zeros(last[1]))]

    def init() -> NetState:
        params = jax.vmap(first_params)(jax.random.split(jax.random.key(seed), num_nets))
        zeros = lambda *shape: jnp.zeros((_MEMORY_SIZE, *shape), jnp.float32)
        memory = Rows(zeros(num_inputs), zeros(num_states), zeros(), zeros())
        # A copy, since a donated state may hold no array twice.
        trained = jax.tree.map(jnp.copy, params)
        return NetState(params, trained, jax.vmap(optimizer.init)(params), memory, jnp.zeros((), jnp.int32))

    def log_law(params: Any, inputs: jax.Array, offset: jax.Array) -> jax.Array:
        values = jnp.concatenate([inputs, 1 + _OFFSET_SCALE * offset])
        for weights, biases in params[:-1]:
            values = jnp.tanh(weights @ values + biases)
        weights, biases = params[-1]
        corrections = weights @ values + biases
        # Less the maximum, which changes nothing but that an even offset leaves the gain a gradient of nearly nothing.
        return jax.nn.log_softmax(offset + corrections[-1] * (offset - offset.max()) + corrections[:-1])

    def loss(params: Any, rows: Rows) -> jax.Array:
        """Returns minus the mean log probability of visits, binomial coefficients left out."""
        of_rates = (
            rows.successes[:, None] * jnp.asarray(log_rates, jnp.float32)[None]
            + rows.failures[:, None] * jnp.asarray(log_rests, jnp.float32)[None]
        )
        log_probs = jax.vmap(lambda inputs, offset: log_law(params, inputs, offset))(rows.inputs, rows.offsets)
        is_used = (rows.successes + rows.failures > 0).astype(jnp.float32)
        log_evidence = jax.nn.logsumexp(log_probs + of_rates, axis=1)
        return -jnp.sum(is_used * log_evidence) / jnp.maximum(is_used.sum(), 1.0)

    def learn(state: NetState, rows: Rows, round_index: jax.Array) -> NetState:
        num_held = jnp.minimum(state.num_visits, _MEMORY_SIZE).astype(jnp.float32)

        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, opt_state = carry
            # Late visits more often than early ones, as learners move on.
            age = (num_held * jax.random.uniform(key, (_SAMPLE_SIZE,), jnp.float32) ** 2).astype(jnp.int32)
            places = (state.num_visits - 1 - age) % _MEMORY_SIZE
            both = jax.tree.map(lambda of_round, ring: jnp.concatenate([of_round, ring[places]]), rows, state.memory)
            grads = jax.grad(loss)(params, both)
            # Adam raises a float to an integer, which a program that asks for strict promotion forbids.
            with jax.numpy_dtype_promotion("standard"):
                updates, opt_state = optimizer.update(grads, opt_state, params)
                return (optax.apply_updates(params, updates), opt_state), None

        def train(key: jax.Array, params: Any, opt_state: Any) -> tuple[Any, Any]:
            return lax.scan(step, (params, opt_state), jax.random.split(key, _NUM_STEPS))[0]

        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed + 1), round_index), num_nets)
        trained, opt_state = jax.vmap(train)(keys, state.trained, state.opt_state)
        num_rounds = round_index.astype(jnp.float32)
        keep = jnp.minimum(jnp.asarray(average_decays, jnp.float32), num_rounds / (num_rounds + 1.0))
        average = jax.vmap(lambda keep, old, new: keep * old + (1 - keep) * new)
        params = jax.tree.map(lambda old, new: average(keep, old, new), state.params, trained)
        # Of more visits than the ring holds, the first.
        kept = jax.tree.map(lambda leaf: leaf[:_MEMORY_SIZE], rows)
        is_used = kept.successes + kept.failures > 0
        places = (state.num_visits + jnp.cumsum(is_used, dtype=jnp.int32) - 1) % _MEMORY_SIZE
        places = jnp.where(is_used, places, _MEMORY_SIZE)
        memory = jax.tree.map(lambda ring, found: ring.at[places].set(found, mode="drop"), state.memory, kept)
        num_visits = state.num_visits + jnp.sum(is_used, dtype=jnp.int32)
        return NetState(params, trained, opt_state, memory, num_visits)

    def laws(state: NetState, inputs: jax.Array, offset: jax.Array) -> jax.Array:
        return jnp.exp(jax.vmap(log_law, in_axes=(0, None, None))(state.params, inputs, offset))

    return OnlineNet(init=init, laws=laws, learn=learn)
