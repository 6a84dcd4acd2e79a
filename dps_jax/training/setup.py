"""A run's parts from its config: task, problems, policy, selector, learner, round."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dps_jax import models, rl, selectors, tasks
from dps_jax.hmm.transitions import TransitionPrior
from dps_jax.models import weights
from dps_jax.tasks import references
from dps_jax.training.config import TrainConfig
from dps_jax.training.evaluation import Evaluation, evaluator, to_metrics
from dps_jax.training.round import Round, make_round

# The held-out problems are the same for all runs, whatever their seeds.
_TEST_SEED = 0
_TEST_BATCH = 64
# Far from the few numbers that keys are split into: fold_in(key, 1) is split(key)[1], of which rounds are made.
_EVALUATION_KEY = 2**30
_NUM_EXAMPLES = 9
_NUM_BINS = 10


class Parts(NamedTuple):
    """What a run is made of.

    Attributes:
      task: what is to be learned.
      problems: to train on, as far as a selector may know them.
      graded: the same on the device, with what grading needs; see `tasks.references`. What rounds are given.
      score_fn: of `graded` problems.
      params: of the policy before training.
      policy: params -> the `models.Decoder` with them.
      prior: that the selector starts with; None for methods without one.
      with_prior: (state of the selector, prior) -> its state under another prior; None for methods without one.
      round: one round.
      predicted_success_rates: `TrainState` -> shares of all prompts by predicted success rate, in ten bins, [10].
      answers: (params, key) -> a prompt, an answer and whether it is correct, of some held-out problems.
      evaluate: (params, round_index) -> test results, of JSON types.
    """

    task: tasks.Task
    problems: tasks.Problems
    graded: tasks.Problems
    score_fn: Callable[[jax.Array, jax.Array], tasks.Score]
    params: Any
    policy: Callable[[Any], models.Decoder]
    prior: TransitionPrior | None
    with_prior: Callable[[Any, TransitionPrior], Any] | None
    round: Round
    predicted_success_rates: Callable[[Any], np.ndarray]
    answers: Callable[[Any, jax.Array], list[tuple[str, str, bool]]]
    evaluate: Callable[[Any, int], dict[str, Any]]


def decoder_config(task: tasks.Task, size: str) -> models.DecoderConfig:
    """Returns the shape of a policy for a task, of a size by its name in `models.SIZES`."""
    return models.DecoderConfig(vocab_size=len(task.vocabulary), patch_bits=task.patch_bits, **models.SIZES[size])


def load_policy(config: TrainConfig, task: tasks.Task) -> models.Decoder:
    """Returns the policy before training.

    Raises:
      ValueError: if the weights are of another vocabulary or read other patches.
    """
    if config.model.weights is None:
        return models.Decoder(decoder_config(task, config.model.size), rngs=nnx.Rngs(config.seed))
    model, facts = weights.load(config.model.weights)
    vocabulary = tuple(facts.get("vocabulary", ()))
    if model.config.vocab_size != len(task.vocabulary) or vocabulary not in ((), task.vocabulary):
        raise ValueError(
            f"model.weights: expected the vocabulary of task {task.name!r} ({len(task.vocabulary)} tokens), got "
            f"{str(config.model.weights)!r} with that of {facts.get('task', 'another')!r} "
            f"({model.config.vocab_size} tokens); make weights for this task with experiments/pretrain.py"
        )
    if model.config.patch_bits != task.patch_bits:
        raise ValueError(
            f"model.weights: expected a model for patches of {task.patch_bits} bits, as task {task.name!r} has "
            f"them, got {str(config.model.weights)!r} for patches of {model.config.patch_bits}; make weights for this "
            "task with experiments/pretrain.py"
        )
    return model


def make_sampler(
    graphdef: Any, task: tasks.Task, *, group_size: int, temperature: float = 1.0, top_p: float = 1.0
) -> Callable[[Any, jax.Array, jax.Array], models.Completions]:
    """Returns the function (params, prompts [B, P], key) -> `models.Completions` of a policy."""

    def sample_fn(params: Any, prompts: jax.Array, key: jax.Array) -> models.Completions:
        return models.sample(
            nnx.merge(graphdef, params),
            prompts,
            key,
            group_size=group_size,
            completion_length=task.completion_length,
            end_id=task.end_id,
            pad_id=task.pad_id,
            temperature=temperature,
            top_p=top_p,
        )

    return sample_fn


def held_out_problems(task: tasks.Task, num_problems: int) -> tasks.Problems:
    """Returns the first held-out problems of a task, the same for all runs."""
    return task.make_problems(_TEST_SEED, "test", np.arange(num_problems))


def make_evaluator(
    graphdef: Any, task: tasks.Task, *, num_test: int, num_samples: int, temperature: float = 1.0
) -> Callable[[Any, jax.Array], Evaluation]:
    """Returns the function (params, key) -> `Evaluation` on the first `num_test` held-out problems of a task."""
    problems = held_out_problems(task, num_test)
    sample_fn = make_sampler(graphdef, task, group_size=num_samples, temperature=temperature)
    return evaluator(
        sample_fn,
        task.score,
        problems,
        num_samples=num_samples,
        batch_size=_TEST_BATCH,
        group_names=task.group_names,
    )


def _answers(
    params: Any, key: jax.Array, *, sample_fn: Callable[..., models.Completions], task: tasks.Task
) -> list[tuple[str, str, bool]]:
    """Returns prompt, answer and correctness of the first held-out problems of every level in turn; see `Parts`."""
    problems = held_out_problems(task, _NUM_EXAMPLES * 8)
    rank = np.array([np.sum(problems.groups[:row] == group) for row, group in enumerate(problems.groups)])
    rows = np.lexsort((problems.groups, rank))[:_NUM_EXAMPLES]
    tokens = np.asarray(sample_fn(params, jnp.asarray(problems.prompts[rows]), key).tokens)[:, 0]
    is_correct = np.asarray(task.score(jnp.asarray(problems.facts[rows]), jnp.asarray(tokens)).is_correct)
    return [
        (task.decode(prompt), task.decode(answer), bool(is_right))
        for prompt, answer, is_right in zip(problems.prompts[rows], tokens, is_correct, strict=True)
    ]


def _rate_shares(selector: Any, state: Any) -> jax.Array:
    """Returns the shares of all prompts by predicted success rate, in ten bins, [10]."""
    rates = selector.predict(state.selector).success_rate
    bins = jnp.clip((rates * _NUM_BINS).astype(jnp.int32), 0, _NUM_BINS - 1)
    return jnp.zeros(_NUM_BINS).at[bins].add(1 / rates.shape[0])


def held_out_accuracy(
    task: tasks.Task, model: models.Decoder, *, num_test: int, num_samples: int = 8
) -> dict[str, Any]:
    """Returns test results of a policy, as a run logs them."""
    graphdef, params = nnx.split(model)
    evaluate = make_evaluator(graphdef, task, num_test=num_test, num_samples=num_samples)
    return to_metrics(evaluate(params, jax.random.key(_TEST_SEED)))


def _check_quotas(quotas: Any, task: tasks.Task, known: str) -> None:
    """Raises ValueError unless there is a quota for each of the task's levels, and the method may see these."""
    if known == "none":
        raise ValueError(
            "selector.side_information: expected 'groups' or 'all' along with quotas, which are of the task's levels, "
            f"got {known!r}"
        )
    names = task.group_names
    if np.size(quotas) != len(names):
        raise ValueError(
            f"selector.options: expected quotas for the {len(names)} levels of task {task.name!r} "
            f"({', '.join(names)}), got {quotas!r}"
        )


def selector_options(
    config: TrainConfig, task: tasks.Task, problems: tasks.Problems
) -> tuple[TransitionPrior | None, dict[str, Any]]:
    """Returns the prior of the method, or None, and all its options: those set, and what it can know of the task.

    Raises:
      ValueError: if the prior has groups, but fewer than the task has levels.
    """
    names = selectors.option_names(config.selector.method)
    options = config.selector.method_options()
    prior = None
    if "prior" in names:
        prior = options["prior"] = config.selector.resolved_prior()
        if 0 < len(prior.groups) < len(task.group_names):
            raise ValueError(
                f"selector.prior: expected a prior with a group for each of the {len(task.group_names)} levels of "
                f"task {task.name!r}, got {len(prior.groups)} groups"
            )
    if "group_size" in names:
        options["group_size"] = config.rollout.group_size
    known = config.selector.side_information
    if options.get("quotas") is not None:
        _check_quotas(options["quotas"], task, known)
        options["groups"] = problems.groups
    if "groups" in names and (prior is None or prior.groups) and known != "none":
        options["groups"] = problems.groups
    if "features" in names and known == "all":
        options["features"] = problems.facts
    return prior, options


def build(config: TrainConfig) -> Parts:
    """Returns the parts of a run.

    Raises:
      ValueError: for options that do not fit together.
    """
    task = tasks.build(config.task.name, **config.task.options())
    indices = np.arange(config.task.num_train)
    problems = task.make_problems(config.seed, "train", indices)
    is_broken = references.is_broken(config.seed, "train", indices, config.task.broken)
    score_fn = references.graded_score(task.score, config.task.format_reward)
    graphdef, params = nnx.split(load_policy(config, task))
    rollout, learner = config.rollout, config.learner
    prior, method_options = selector_options(config, task, problems)

    def log_probs_fn(params: Any, prompts: jax.Array, completions: jax.Array) -> tuple[jax.Array, jax.Array]:
        return models.completion_log_probs(
            nnx.merge(graphdef, params), prompts, completions, pad_id=task.pad_id, temperature=rollout.temperature
        )

    sampling = {"group_size": rollout.group_size, "temperature": rollout.temperature, "top_p": rollout.top_p}
    selector = selectors.build(config.selector.method, config.task.num_train, **method_options)
    parts = make_round(
        make_sampler(graphdef, task, **sampling),
        score_fn,
        log_probs_fn,
        selector,
        rl.learner(
            log_probs_fn,
            learning_rate=learner.learning_rate,
            advantage=learner.advantage,
            loss=learner.loss,
            clip_low=learner.clip_low,
            clip_high=learner.clip_high,
            kl_coef=learner.kl_coef,
            kl=learner.kl,
            entropy_coef=learner.entropy_coef,
            num_minibatches=learner.num_minibatches,
            num_epochs=learner.num_epochs,
            max_grad_norm=learner.max_grad_norm,
            weight_decay=learner.weight_decay,
            rate_by_share=learner.rate_by_share,
            inclusion_weights=learner.inclusion_weights,
            num_prompts=config.task.num_train,
        ),
        num_prompts=config.task.num_train,
        batch_size=rollout.batch_size,
        pool_size=config.selector.pool_size(rollout.batch_size, config.task.num_train),
        has_reference=learner.kl_coef != 0,
        max_batches=rollout.max_batches if rollout.collection == "dynamic" else None,
    )
    evaluate = make_evaluator(graphdef, task, num_test=config.task.num_test, num_samples=config.eval_samples)
    key = jax.random.fold_in(jax.random.key(config.seed), _EVALUATION_KEY)
    return Parts(
        task=task,
        problems=problems,
        graded=jax.tree.map(jnp.asarray, references.graded(problems, is_broken)),
        score_fn=score_fn,
        params=params,
        policy=functools.partial(nnx.merge, graphdef),
        prior=prior,
        with_prior=selector.with_prior,
        round=parts,
        predicted_success_rates=jax.jit(functools.partial(_rate_shares, selector)),
        answers=functools.partial(
            _answers, sample_fn=jax.jit(make_sampler(graphdef, task, **(sampling | {"group_size": 1}))), task=task
        ),
        evaluate=lambda params, round_index: to_metrics(evaluate(params, jax.random.fold_in(key, round_index))),
    )
