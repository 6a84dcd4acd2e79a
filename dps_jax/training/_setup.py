"""Builds the parts of a run on a task from its config: task, problems, policy, selector, learner and round."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dps_jax import models, selectors, tasks
from dps_jax.models import _weights
from dps_jax.tasks import _references
from dps_jax.training import _mesh, _options, _policy_files, _selection
from dps_jax.training._config import TrainConfig
from dps_jax.training._evaluation import Evaluation, evaluator, to_metrics
from dps_jax.training._parts import RunParts
from dps_jax.training._phases import collect_on_device

# The held-out problems are the same for all runs, whatever their seeds.
_TEST_SEED = 0
_TEST_BATCH = 64
# A large number, since fold_in(key, 1) equals split(key)[1], from which the keys of rounds are derived.
EVALUATION_KEY = 2**30
_NUM_EXAMPLES = 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts(RunParts):
    """The parts of a run on a task.

    Attributes:
      task: the task that the policy learns.
      problems: training problems, without the information about wrong references.
      graded: the same problems on the device, with all facts that grading needs; rounds use these.
      score_fn: function that grades completions of the `graded` problems.
    """

    task: tasks.Task
    problems: tasks.Problems
    graded: tasks.Problems
    score_fn: Callable[[jax.Array, jax.Array], tasks.Score]


def decoder_config(task: tasks.Task, size: str) -> models.DecoderConfig:
    """Returns the shape of a policy for a task; `size` is a key of `models.SIZES`."""
    return models.DecoderConfig(vocab_size=len(task.vocabulary), patch_bits=task.patch_bits, **models.SIZES[size])


def load_policy(config: TrainConfig, task: tasks.Task) -> models.Decoder:
    """Returns the policy before training.

    Raises:
      ValueError: if the weights belong to another vocabulary or other image patches.
    """
    if config.model.weights is None:
        return models.Decoder(decoder_config(task, config.model.size), rngs=nnx.Rngs(config.seed))
    model, facts = _weights.load(config.model.weights)
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
    graphdef: Any,
    task: tasks.Task,
    *,
    group_size: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    dtype: str = "float32",
) -> Callable[[Any, jax.Array, jax.Array], models.Completions]:
    """Returns the function (params, prompts [B, P], key) -> `models.Completions` of a policy."""

    def sample_fn(params: Any, prompts: jax.Array, key: jax.Array) -> models.Completions:
        return models.sample(
            nnx.merge(graphdef, models.for_computing(params, dtype)),
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
    graphdef: Any,
    task: tasks.Task,
    *,
    num_test: int,
    num_samples: int,
    temperature: float = 1.0,
    dtype: str = "float32",
) -> Callable[[Any, jax.Array], Evaluation]:
    """Returns the function (params, key) -> `Evaluation` on the first `num_test` held-out problems of a task."""
    problems = held_out_problems(task, num_test)
    sample_fn = make_sampler(graphdef, task, group_size=num_samples, temperature=temperature, dtype=dtype)
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
    """Returns prompt, answer and correctness of the first held-out problems, taking one of each level in turn."""
    problems = held_out_problems(task, _NUM_EXAMPLES * 8)
    rank = np.array([np.sum(problems.groups[:row] == group) for row, group in enumerate(problems.groups)])
    rows = np.lexsort((problems.groups, rank))[:_NUM_EXAMPLES]
    tokens = _mesh.fetch(sample_fn(params, problems.prompts[rows], key).tokens)[:, 0]
    is_correct = np.asarray(task.score(jnp.asarray(problems.facts[rows]), jnp.asarray(tokens)).is_correct)
    return [
        (task.decode(prompt), task.decode(answer), bool(is_right))
        for prompt, answer, is_right in zip(problems.prompts[rows], tokens, is_correct, strict=True)
    ]


def held_out_accuracy(
    task: tasks.Task, model: models.Decoder, *, num_test: int, num_samples: int = 8
) -> dict[str, Any]:
    """Returns the test results of a policy, in the form that a run logs."""
    graphdef, params = nnx.split(model)
    evaluate = make_evaluator(graphdef, task, num_test=num_test, num_samples=num_samples)
    return to_metrics(evaluate(params, jax.random.key(_TEST_SEED)))


def known_prompts(task: tasks.Task, problems: tasks.Problems) -> _selection.Prompts:
    """Returns the information about the problems of a task that a selector may use."""
    return _selection.Prompts(groups=problems.groups, features=problems.facts, group_names=task.group_names)


def build(config: TrainConfig) -> Parts:
    """Returns the parts of a run.

    Raises:
      ValueError: for options that do not fit together.
    """
    task = tasks.build(config.task.name, **config.task.options())
    indices = np.arange(config.task.num_train)
    problems = task.make_problems(config.seed, "train", indices)
    is_broken = _references.is_broken(config.seed, "train", indices, config.task.broken)
    score_fn = _references.graded_score(task.score, config.task.format_reward)
    devices = _mesh.make_mesh(config.mesh)
    placing = _mesh.placing_of(devices)
    model = load_policy(config, task)
    model.placing = placing
    graphdef, params = nnx.split(model)
    params = _mesh.put_weights(placing, params)
    rollout = config.rollout
    prior, method_options = _selection.selector_options(config, known_prompts(task, problems), devices)

    def log_probs_fn(params: Any, prompts: jax.Array, completions: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graphdef, models.for_computing(params, config.model.dtype))
        return models.completion_log_probs(
            model, prompts, completions, pad_id=task.pad_id, temperature=rollout.temperature
        )

    sampling: dict[str, Any] = {
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "dtype": config.model.dtype,
    }
    selector = selectors.build(config.selector.method, config.task.num_train, **method_options)
    sample_fn = make_sampler(graphdef, task, group_size=rollout.group_size, **sampling)
    parts = _selection.build_round(config, selector, config.task.num_train, sample_fn, score_fn, log_probs_fn, placing)
    evaluate = make_evaluator(
        graphdef,
        task,
        num_test=config.task.num_test,
        num_samples=config.eval_samples,
        dtype=config.model.dtype,
    )
    key = jax.random.fold_in(jax.random.key(config.seed), EVALUATION_KEY)
    graded = _mesh.put_whole(placing, _references.graded(problems, is_broken))
    sample_one = jax.jit(make_sampler(graphdef, task, group_size=1, **sampling))
    return Parts(
        task=task,
        problems=problems,
        graded=graded,
        score_fn=score_fn,
        params=params,
        round=parts,
        collect=collect_on_device(parts, graded),
        prior=prior,
        with_prior=selector.with_prior,
        groups=problems.groups,
        features=problems.facts,
        group_names=task.group_names,
        predicted_success_rates=jax.jit(functools.partial(_selection.rate_shares, selector)),
        evaluate=lambda params, round_index: to_metrics(evaluate(params, jax.random.fold_in(key, round_index))),
        answers=functools.partial(_answers, sample_fn=sample_one, task=task),
        policies=_policy_files.of_task(task, functools.partial(nnx.merge, graphdef), _options.to_json(config)["task"]),
        form=_mesh.StateForm(placing, selector),
    )
