"""A simulated policy for prompts that share facts, so that training on some prompts raises the success rates of others.

The policy is a table of softmaxes, one per fact. A prompt is a set of facts. A completion answers each fact, and is
correct if all answers are right and the reference of the prompt is not wrong. The policy is trained by the policy
gradient of GRPO on sampled completions. The true success rates of all prompts, held-out prompts included, are known
exactly. All functions but `draw_problems` are pure JAX.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dps_jax import _checks, _exact

_NUM_FEATURES = 8
_NUM_TEST = 400
# Added to standard deviations of rewards.
_EPSILON = 1e-6


class Level(NamedTuple):
    """A level: prompts with the same number of facts.

    Attributes:
      num_facts: number of facts of each prompt.
      weight: share of the training prompts, relative to the weights of the other levels.
      is_apart: whether the facts are disjoint from those of held-out prompts and of levels that are not apart, so that
        training on these levels never makes this one easier.
    """

    num_facts: int
    weight: float
    is_apart: bool = False


@dataclasses.dataclass(frozen=True)
class Mix:
    """The composition of the training set.

    Attributes:
      levels: levels of the training prompts; the index of a level is the prompt group of its prompts.
      test_levels: number of facts per prompt in each level of held-out prompts; these levels are equally frequent.
      broken_share: share of training prompts with a wrong reference, in [0, 1): no completion of them is ever correct.
        A selector cannot distinguish them from hard prompts.
      num_facts: number of facts that are shared by the prompts of levels that are not apart.
      num_apart: number of further facts, for levels that are apart.
      num_answers: number of possible answers to a fact, A; answer 0 is the right one.
      slip_rates: lowest and highest probability of a wrong answer before training, uniform over facts.
    """

    levels: tuple[Level, ...]
    test_levels: tuple[int, ...] = (2, 3, 4, 5, 6)
    broken_share: float = 0.0
    num_facts: int = 240
    num_apart: int = 0
    num_answers: int = 10
    slip_rates: tuple[float, float] = (0.1, 0.7)

    def __post_init__(self):
        _checks.check_int("num_facts", self.num_facts, at_least=1)
        _checks.check_int("num_answers", self.num_answers, at_least=3)
        for name in ("levels", "test_levels"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one level, got none")
        _checks.check_int("num_apart", self.num_apart, at_least=0)
        for level in (*self.levels, *(Level(length, 1.0) for length in self.test_levels)):
            at_most = self.num_apart if level.is_apart else self.num_facts
            _checks.check_int("num_facts of a level", level.num_facts, at_least=1, at_most=at_most)
            if not 0 < level.weight < np.inf:
                raise ValueError(f"weight of a level: expected a finite number > 0, got {level.weight}")
        if not 0 <= self.broken_share < 1:
            raise ValueError(f"broken_share: expected a share in [0, 1), got {self.broken_share}")
        low, high = self.slip_rates
        if not 0 < low <= high < 1:
            raise ValueError(f"slip_rates: expected 0 < lowest <= highest < 1, got {self.slip_rates}")

    @property
    def table_size(self) -> int:
        """Number of all facts, F."""
        return self.num_facts + self.num_apart


_LEARNABLE = tuple(Level(num_facts, 1.0) for num_facts in (1, 2, 3, 4, 6, 8, 10))

# Informative shares are means under uniform selection, over 160 rounds of 32 prompts at the default learning rate.
MIXES: dict[str, Mix] = {
    # Many wrong references, which nothing reveals; a seventh of the completion groups is informative.
    "lean": Mix(_LEARNABLE, broken_share=0.82),
    # Many prompts of one level that is far too long to be solved within a run; a seventh of the completion groups is
    # informative.
    "lean_by_level": Mix((*_LEARNABLE, Level(30, 31.0, is_apart=True)), num_apart=120),
    # Two fifths of the completion groups are informative.
    "typical": Mix(_LEARNABLE, broken_share=0.48),
    # 70 % of the completion groups are informative.
    "rich": Mix(_LEARNABLE, broken_share=0.08, num_facts=400),
}


class Problems(NamedTuple):
    """Training and held-out prompts, as NumPy arrays; they are the same for all seeds of a simulation.

    Attributes:
      facts: facts of each training prompt, int32 [N, width], padded with F.
      groups: level of each training prompt, int32 [N].
      features: random projection of the facts of each training prompt, float32 [N, 8].
      test_facts: facts of each held-out prompt, int32 [400, width], padded with F; no held-out prompt is a training
        prompt.
    """

    facts: np.ndarray
    groups: np.ndarray
    features: np.ndarray
    test_facts: np.ndarray

    @property
    def num_prompts(self) -> int:
        """Number of training prompts, N."""
        return self.facts.shape[0]


def _padded_sets(
    rng: np.random.Generator, lengths: np.ndarray, is_apart: np.ndarray, mix: Mix, width: int
) -> np.ndarray:
    """Returns distinct facts for each prompt, sorted, int32 [P, width], padded with F."""
    draws = rng.random((lengths.size, mix.table_size), dtype=np.float32)
    is_other = (np.arange(mix.table_size) >= mix.num_facts) != is_apart[:, None]
    order = np.argsort(draws + is_other, axis=1)[:, :width]
    sets = np.where(np.arange(order.shape[1]) < lengths[:, None], order, mix.table_size)
    return np.sort(sets, axis=1).astype(np.int32)


def draw_problems(mix: Mix, num_prompts: int, problem_seed: int = 0, *, num_test: int = _NUM_TEST) -> Problems:
    """Returns the prompts of a simulation.

    Args:
      mix: composition of the training set.
      num_prompts: number of training prompts, N.
      problem_seed: seed of the prompts; the initial policy and the wrong references do not depend on it.
      num_test: number of held-out prompts.

    Raises:
      ValueError: for a number of prompts below 1, a negative seed, or a mix that has too few different prompts
        for the held-out set.
    """
    _checks.check_int("num_prompts", num_prompts, at_least=1)
    _checks.check_int("problem_seed", problem_seed, at_least=0)
    _checks.check_int("num_test", num_test, at_least=1)
    rng = np.random.default_rng(problem_seed)
    weights = np.array([level.weight for level in mix.levels])
    groups = rng.choice(weights.size, num_prompts, p=weights / weights.sum()).astype(np.int32)
    lengths = np.array([level.num_facts for level in mix.levels])
    width = max(*lengths, *mix.test_levels)
    is_apart = np.array([level.is_apart for level in mix.levels])
    facts = _padded_sets(rng, lengths[groups], is_apart[groups], mix, width)
    # Twice as many prompts are drawn, and those that are training prompts are dropped.
    test_lengths = np.resize(np.array(mix.test_levels), 2 * num_test)
    drawn = _padded_sets(rng, test_lengths, np.zeros(test_lengths.size, bool), mix, width)
    known = {row.tobytes() for row in facts}
    test_facts = drawn[[row.tobytes() not in known for row in drawn]][:num_test]
    if len(test_facts) < num_test:
        raise ValueError(f"num_facts: expected enough for {num_test} prompts that are not in training, got too few")
    projection = rng.standard_normal((mix.table_size + 1, _NUM_FEATURES), dtype=np.float32)
    projection[-1] = 0.0
    return Problems(facts=facts, groups=groups, features=projection[facts].sum(axis=1), test_facts=test_facts)


def first_logits(key: jax.Array, mix: Mix) -> jax.Array:
    """Returns the logits of the policy before training, float32 [F, A]; each fact has its own slip rate.

    Half of the slips on a fact are its habitual wrong answer, and the rest are spread over the other wrong answers.
    """
    key_slips, key_habits = jax.random.split(key)
    low, high = mix.slip_rates
    slips = jax.random.uniform(key_slips, (mix.table_size, 1), minval=low, maxval=high)
    habits = jax.random.randint(key_habits, (mix.table_size, 1), 1, mix.num_answers)
    answers = jnp.arange(mix.num_answers)[None, :]
    wrong = jnp.where(answers == habits, slips / 2, slips / (2 * (mix.num_answers - 2)))
    return jnp.log(jnp.where(answers == 0, 1 - slips, wrong))


def success_rates(logits: jax.Array, facts: jax.Array, is_broken: jax.Array | None = None) -> jax.Array:
    """Returns the exact probability of a correct completion, float32 [P].

    Args:
      logits: logits of the policy, [F, A].
      facts: facts of the prompts, int32 [P, width], padded with F.
      is_broken: whether the reference of each prompt is wrong, so that its rate is 0, bool [P]; None if none is wrong.
    """
    log_right = jnp.append(jax.nn.log_softmax(logits)[:, 0], 0.0)
    rates = jnp.exp(log_right[facts].sum(axis=1))
    return rates if is_broken is None else jnp.where(is_broken, 0.0, rates)


def informative_probs(rates: jax.Array, group_size: int) -> jax.Array:
    """Returns P(0 < m < G) for success rates of any shape."""
    return 1 - rates**group_size - (1 - rates) ** group_size


def rollout(
    key: jax.Array, logits: jax.Array, facts: jax.Array, is_broken: jax.Array, group_size: int
) -> tuple[jax.Array, jax.Array]:
    """Returns G completions of each prompt: answers, int32 [P, G, width], and which are correct, bool [P, G].

    Args:
      key: random key of this rollout.
      logits: logits of the policy, [F, A].
      facts: facts of the prompts, int32 [P, width], padded with F; the answers to padding are 0.
      is_broken: whether the reference of each prompt is wrong, so that no completion is correct, bool [P].
      group_size: number of completions per prompt, G.
    """
    # Without the last column, which rounding might put below a draw. The answer to padding is always 0.
    below = jnp.cumsum(jax.nn.softmax(logits), axis=1)[:, :-1]
    below = jnp.concatenate([below, jnp.ones_like(below[:1])])
    shape = (facts.shape[0], group_size, facts.shape[1])
    # Drawn in one dimension: in three dimensions under vmap, XLA takes 4 s to compile this for CPUs.
    draws = jax.random.uniform(key, (math.prod(shape),)).reshape(shape)
    answers = jnp.sum(draws[..., None] >= below[facts][:, None], axis=3, dtype=jnp.int32)
    return answers, jnp.all(answers == 0, axis=2) & ~is_broken[:, None]


def advantages(is_correct: jax.Array) -> jax.Array:
    """Returns rewards standardised within completion groups, float32 [P, G]; 0 if all rewards of a group are equal.

    Source: GRPO (arXiv 2402.03300), section 4.1.2, with G - 1 in the standard deviation.
    """
    rewards = is_correct.astype(jnp.float32)
    has_contrast = is_correct.any(axis=1, keepdims=True) & ~is_correct.all(axis=1, keepdims=True)
    centred = jnp.where(has_contrast, rewards - rewards.mean(axis=1, keepdims=True), 0.0)
    variance = jnp.sum(centred**2, axis=1, keepdims=True) / (rewards.shape[1] - 1)
    return centred / (jnp.sqrt(variance) + _EPSILON)


def loss_gradient(
    logits: jax.Array, facts: jax.Array, answers: jax.Array, is_correct: jax.Array, is_used: jax.Array | None = None
) -> jax.Array:
    """Returns the gradient of the token-mean loss with respect to the logits, float32 [F, A].

    The loss is minus the mean of advantage * log p(answer) over all answers of all completions. Completions are on
    policy, so that no ratio is clipped.

    Args:
      logits: logits of the policy that sampled the completions, [F, A].
      facts: facts of the prompts, int32 [P, width], padded with F.
      answers: answers of the completions, int32 [P, G, width].
      is_correct: whether each completion is correct, bool [P, G].
      is_used: False for prompts that are padding of a batch, bool [P]; None without padding.

    Source: answers are weighted as in DAPO (arXiv 2503.14476), section 3.3.
    """
    num_facts, num_answers = logits.shape
    is_token = facts < num_facts
    if is_used is not None:
        is_token = is_token & is_used[:, None]
    weights = advantages(is_correct)
    chosen = _exact.einsum("pg,pgla->pla", weights, jax.nn.one_hot(answers, num_answers))
    probs = jax.nn.softmax(logits)[jnp.minimum(facts, num_facts - 1)]
    scores = jnp.where(is_token[:, :, None], chosen - weights.sum(axis=1)[:, None, None] * probs, 0.0)
    num_tokens = jnp.maximum(answers.shape[1] * jnp.sum(is_token, dtype=jnp.float32), 1.0)
    return -jnp.zeros_like(logits).at[facts].add(scores, mode="drop") / num_tokens


def optimiser(max_norm: float | None = None) -> optax.GradientTransformation:
    """Returns Adam (b1 0.9, b2 0.999) without the learning rate; gradients are clipped to the norm `max_norm`."""
    adam = optax.scale_by_adam()
    return adam if max_norm is None else optax.chain(optax.clip_by_global_norm(max_norm), adam)


def update(
    transformation: optax.GradientTransformation, learning_rate: Any, logits: jax.Array, opt_state: Any, grad: jax.Array
) -> tuple[jax.Array, Any]:
    """Returns the logits and the state of the optimiser after one step; the learning rate may be traced."""
    steps, opt_state = transformation.update(grad, opt_state)
    return logits - learning_rate * steps, opt_state
