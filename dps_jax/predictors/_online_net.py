"""Small networks that correct distributions over success rates, trained online on the visits of all prompts.

The distribution of a prompt is softmax((1 + gain) * offset + shifts) over rates on a grid. It predicts m correct
completions of G by a mixture of binomial distributions, for any G. The offset is the logarithm of the belief without
the network; gain and shifts are the outputs of a network whose inputs are the offset and other numbers about the
prompt. The last layer is initialised to zero, so the first predictions are uncorrected. After every round, the network
takes a few steps of Adam on the log loss of the visits of the round and of a sample of earlier visits from a replay
buffer, with inputs from before each visit. Predictions use a moving average of the parameters, which allows larger
steps. The prediction is the mean over a few networks that differ in their initial parameters, their samples and their
averaging decays.

Source: averaged iterates, Polyak and Juditsky, SIAM J. Control Optim. 1992; decoupled weight decay, Loshchilov and
Hutter, arXiv 1711.05101; ensembles, Lakshminarayanan et al., arXiv 1612.01474.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax import _exact

# Size of the replay buffer, and number of its visits that are sampled for each step.
_MEMORY_SIZE, _SAMPLE_SIZE = 4096, 256
_NUM_STEPS = 8
_NUM_HIDDEN = 32
# The offset is an input too; this factor scales it to the size of the other inputs.
_OFFSET_SCALE = 0.3
# Decays of the first and second moments of Adam.
_MEAN_DECAY, _SQUARE_DECAY = 0.9, 0.999
# Far above the rounding error of a gradient whose exact value is 0, such as the gradient of the gain for a uniform
# offset. With a smaller value, Adam would turn such rounding errors, which differ between machines, into full steps.
_ADAM_EPS = 1e-6
_SMALLEST_PROB = 1e-6


class Rows(NamedTuple):
    """Training data of some visits: inputs [P, D], offsets [P, K], and numbers of correct and wrong completions [P].

    Both numbers are 0 for padding.
    """

    inputs: jax.Array
    offsets: jax.Array
    successes: jax.Array
    failures: jax.Array


class AdamState(NamedTuple):
    """State of Adam: number of steps, int32 scalar; moving averages of the gradients and of their squares."""

    num_steps: jax.Array
    means: jax.Array
    squares: jax.Array


class NetState(NamedTuple):
    """Parameters of the networks, the state of their optimiser, and the replay buffer.

    Attributes:
      params: moving average of the parameters over rounds, which predictions use, [J, parameters]. The parameters of a
        network are one vector, weights and biases layer by layer, so that a step of Adam needs few kernels.
      trained: trained parameters, [J, parameters].
      opt_state: state of Adam; leaves have the networks on their first axis.
      memory: replay buffer, `Rows` of the last visits in a ring of fixed size.
      num_visits: number of visits that were added to the replay buffer so far, int32 scalar.
    """

    params: jax.Array
    trained: jax.Array
    opt_state: AdamState
    memory: Rows
    num_visits: jax.Array


class OnlineNet(NamedTuple):
    """The pure functions of the networks.

    Attributes:
      init: () -> `NetState`.
      corrected: (state, inputs [D], offset [K]) -> probabilities of the rates under each network, [J, K], whose mean is
        the prediction.
      learn: (state, `Rows` of a round, round_index) -> state.
    """

    init: Callable[[], NetState]
    corrected: Callable[[NetState, jax.Array, jax.Array], jax.Array]
    learn: Callable[[NetState, Rows, jax.Array], NetState]


class _Model(NamedTuple):
    """Constants of the networks: the options of `online_net`, and values that follow from its rates.

    Attributes:
      num_inputs: number of inputs, D.
      num_states: number of rates, K.
      log_rates: log probabilities of a correct and of a wrong completion at each rate, [2, K].
      learning_rate: learning rate of Adam.
      weight_decay: option of `online_net`.
      average_decays: option of `online_net`.
      seed: seed of the initial parameters and of the samples.
    """

    num_inputs: int
    num_states: int
    log_rates: np.ndarray
    learning_rate: float
    weight_decay: float
    average_decays: tuple[float, ...]
    seed: int


def log_offset(probs: jax.Array) -> jax.Array:
    """Returns the logarithms of probabilities, as the offset of a network."""
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
    """Returns the functions of the networks.

    Args:
      num_inputs: number of inputs, D.
      rates: success rates on the grid, inside (0, 1), [K].
      learning_rate: learning rate of Adam.
      weight_decay: decoupled weight decay: in each step, all parameters shrink by this factor times the learning rate,
        and the corrections shrink with them.
      average_decays: decay per round of the averaged parameters, one for each network, [J]. The decay is smaller in the
        first rounds, so that these rounds have equal weights.
      seed: seed of the initial parameters and of the samples.
    """
    log_rates = np.stack([np.log(rates), np.log1p(-rates)])
    model = _Model(num_inputs, rates.size, log_rates, learning_rate, weight_decay, average_decays, seed)
    bound = lambda function: functools.partial(function, model)
    return OnlineNet(init=bound(_init), corrected=bound(_corrected), learn=bound(_learn))


def _shapes(model: _Model) -> list[tuple[int, int]]:
    """Returns numbers of outputs and inputs of every layer."""
    sizes = (model.num_inputs + model.num_states, _NUM_HIDDEN, _NUM_HIDDEN, model.num_states + 1)
    return [(num_out, num_in) for num_in, num_out in itertools.pairwise(sizes)]


def _layers(model: _Model, params: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Returns weights [outputs, inputs] and biases [outputs] of every layer of one network."""
    layers, start = [], 0
    for num_out, num_in in _shapes(model):
        middle, stop = start + num_out * num_in, start + num_out * (num_in + 1)
        layers.append((params[start:middle].reshape(num_out, num_in), params[middle:stop]))
        start = stop
    return layers


def _first_params(model: _Model, key: jax.Array) -> jax.Array:
    *hidden, last = _shapes(model)
    # Every layer draws as many numbers as the largest layer needs, so that one compiled program serves all layers.
    keys, largest = jax.random.split(key, len(hidden)), max(num_out * num_in for num_out, num_in in hidden)
    drawn = jax.vmap(lambda key: jax.random.normal(key, (largest,), jnp.float32))(keys)
    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
    parts = []
    for numbers, (num_out, num_in) in zip(drawn, hidden, strict=True):
        parts += [numbers[: num_out * num_in] / num_in**0.5, zeros(num_out)]
    return jnp.concatenate([*parts, zeros(last[0] * (last[1] + 1))])


def _init(model: _Model) -> NetState:
    num_nets = len(model.average_decays)
    params = jax.vmap(functools.partial(_first_params, model))(jax.random.split(jax.random.key(model.seed), num_nets))
    zeros = lambda *shape: jnp.zeros((_MEMORY_SIZE, *shape), jnp.float32)
    return NetState(
        params=params,
        # A copy, since a donated state must not contain an array twice.
        trained=jnp.copy(params),
        opt_state=AdamState(jnp.zeros(num_nets, jnp.int32), jnp.zeros_like(params), jnp.zeros_like(params)),
        memory=Rows(zeros(model.num_inputs), zeros(model.num_states), zeros(), zeros()),
        num_visits=jnp.zeros((), jnp.int32),
    )


def _log_probs(model: _Model, params: jax.Array, inputs: jax.Array, offset: jax.Array) -> jax.Array:
    """Returns the log probabilities of the rates under one network, [K]."""
    values = jnp.concatenate([inputs, 1 + _OFFSET_SCALE * offset])
    *hidden, (weights, biases) = _layers(model, params)
    for hidden_weights, hidden_biases in hidden:
        values = jnp.tanh(_exact.matmul(hidden_weights, values) + hidden_biases)
    corrections = _exact.matmul(weights, values) + biases
    # Subtracting the maximum changes no probability, but makes the gradient of the gain nearly 0 for a uniform offset.
    return jax.nn.log_softmax(offset + corrections[-1] * (offset - offset.max()) + corrections[:-1])


def _corrected(model: _Model, state: NetState, inputs: jax.Array, offset: jax.Array) -> jax.Array:
    of_net = functools.partial(_log_probs, model)
    return jnp.exp(jax.vmap(of_net, in_axes=(0, None, None))(state.params, inputs, offset))


def _loss(model: _Model, params: jax.Array, rows: Rows) -> jax.Array:
    """Returns minus the mean log probability of visits under one network, without binomial coefficients."""
    log_rates = jnp.asarray(model.log_rates, jnp.float32)
    of_rates = rows.successes[:, None] * log_rates[0][None] + rows.failures[:, None] * log_rates[1][None]
    log_probs = jax.vmap(functools.partial(_log_probs, model, params))(rows.inputs, rows.offsets)
    is_used = (rows.successes + rows.failures > 0).astype(jnp.float32)
    log_evidence = jax.nn.logsumexp(log_probs + of_rates, axis=1)
    return -jnp.sum(is_used * log_evidence) / jnp.maximum(is_used.sum(), 1.0)


def _adam_step(model: _Model, params: jax.Array, opt_state: AdamState, grads: jax.Array) -> tuple[jax.Array, AdamState]:
    """Returns the parameters and the Adam state of one network after a step."""
    num_steps = opt_state.num_steps + 1
    unbiased = lambda moments, decay: moments / (1 - decay ** num_steps.astype(jnp.float32))
    means = (1 - _MEAN_DECAY) * grads + _MEAN_DECAY * opt_state.means
    squares = (1 - _SQUARE_DECAY) * grads**2 + _SQUARE_DECAY * opt_state.squares
    step = unbiased(means, _MEAN_DECAY) / (jnp.sqrt(unbiased(squares, _SQUARE_DECAY)) + _ADAM_EPS)
    params = params - model.learning_rate * (step + model.weight_decay * params)
    return params, AdamState(num_steps, means, squares)


def _trained(
    model: _Model, state: NetState, rows: Rows, key: jax.Array, params: jax.Array, opt_state: AdamState
) -> tuple[jax.Array, AdamState]:
    """Returns the parameters and the Adam state of one network after the steps of a round."""
    num_held = jnp.minimum(state.num_visits, _MEMORY_SIZE).astype(jnp.float32)

    def step(carry: tuple[jax.Array, AdamState], key: jax.Array) -> tuple[tuple[jax.Array, AdamState], None]:
        # Later visits are sampled more often than earlier ones, since the policy changes.
        age = (num_held * jax.random.uniform(key, (_SAMPLE_SIZE,), jnp.float32) ** 2).astype(jnp.int32)
        places = (state.num_visits - 1 - age) % _MEMORY_SIZE
        both = jax.tree.map(lambda of_round, ring: jnp.concatenate([of_round, ring[places]]), rows, state.memory)
        params, opt_state = carry
        return _adam_step(model, params, opt_state, jax.grad(functools.partial(_loss, model))(params, both)), None

    return lax.scan(step, (params, opt_state), jax.random.split(key, _NUM_STEPS))[0]


def _learn(model: _Model, state: NetState, rows: Rows, round_index: jax.Array) -> NetState:
    decays = jnp.asarray(model.average_decays, jnp.float32)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(model.seed + 1), round_index), decays.size)
    train = jax.vmap(functools.partial(_trained, model, state, rows))
    trained, opt_state = train(keys, state.trained, state.opt_state)
    num_rounds = round_index.astype(jnp.float32)
    keep = jnp.minimum(decays, num_rounds / (num_rounds + 1.0))[:, None]
    # If a round has more visits than the replay buffer holds, the first visits are kept.
    kept = jax.tree.map(lambda leaf: leaf[:_MEMORY_SIZE], rows)
    is_used = kept.successes + kept.failures > 0
    places = (state.num_visits + jnp.cumsum(is_used, dtype=jnp.int32) - 1) % _MEMORY_SIZE
    places = jnp.where(is_used, places, _MEMORY_SIZE)
    return NetState(
        params=keep * state.params + (1 - keep) * trained,
        trained=trained,
        opt_state=opt_state,
        memory=jax.tree.map(lambda ring, found: ring.at[places].set(found, mode="drop"), state.memory, kept),
        num_visits=state.num_visits + jnp.sum(is_used, dtype=jnp.int32),
    )
