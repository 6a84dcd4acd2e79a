"""Builds the parts of a run on a data file from its config: prompts, policy, graders, selector and round."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dps_jax import grading, models, rl, selectors, text
from dps_jax.models import _fused_attention, _lora
from dps_jax.training import _evaluation, _host_rollout, _mesh, _processes, _selection, _text_policy, _text_prompts
from dps_jax.training._host_rollout import HostRollout
from dps_jax.training._parts import RunParts
from dps_jax.training._selector_config import named
from dps_jax.training._setup import EVALUATION_KEY
from dps_jax.training._text_config import TextConfig
from dps_jax.training._text_grading import TextGrader
from dps_jax.training._text_policy import TextPolicy

_NUM_EXAMPLES = 9
# Folded into the key of the run, like `EVALUATION_KEY`.
_ADAPTER_KEY = EVALUATION_KEY + 1
# Number of completions that are sampled together in an evaluation.
_EVALUATION_ROWS = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextParts(RunParts):
    """The parts of a run on a data file.

    Attributes:
      prompts: training prompts.
      test_prompts: held-out prompts.
      policy: the parts of the policy that do not depend on its parameters.
      how: functions and sizes of the rollouts of training prompts.
    """

    prompts: text.Prompts
    test_prompts: text.Prompts
    policy: TextPolicy
    how: HostRollout


def load_policy(config: TextConfig, tokenizer: text.Tokenizer, devices: Mesh | None = None) -> tuple[TextPolicy, Any]:
    """Returns the policy before training, and its parameters: float32, or adapters and frozen weights.

    Raises:
      ValueError: if the files of the model are damaged or do not fit the tokenizer, or the rank of the adapters does
        not fit the model.
    """
    shape = config.learner.lora_shape()
    # Frozen weights keep the dtype of their file, unless the model computes in float32.
    is_as_filed = shape is not None and config.dtype != "float32"
    model = models.load_pretrained(config.model, dtype=None if is_as_filed else "float32", mesh=devices)
    tokenizer.check_fits(model.config.vocab_size)
    model.placing = _mesh.placing_of(devices)
    graphdef, params = nnx.split(model)
    params = _mesh.put_weights(model.placing, params)
    policy = TextPolicy(
        graphdef=graphdef,
        end_ids=tuple(dict.fromkeys((*tokenizer.end_ids, *text.stop_ids(tokenizer, config.rollout.stops)))),
        pad_id=tokenizer.pad_id,
        num_tokens=tokenizer.num_tokens,
        completion_length=config.rollout.completion_length,
        dtype=config.dtype,
        attention=config.attention,
        lora=shape,
    )
    if shape is None:
        return policy, params
    key = jax.random.fold_in(jax.random.key(config.seed), _ADAPTER_KEY)
    with named("learner", "lora_"):
        adapters = _lora.init(model.config, key, shape)
    return policy, rl.PartlyTrained(trained=adapters, frozen=params)


def build(config: TextConfig) -> TextParts:
    """Returns the parts of a run, and starts its grading processes, which `RunParts.close` ends.

    Raises:
      ValueError: for files or options that cannot be used or do not fit together.
    """
    _fused_attention.check_backend(config.attention)
    spec = grading.resolve(config.grader.name, **config.grader.option_values())
    tokenizer = text.load_tokenizer(config.model)
    if not config.prompts.chat:
        tokenizer = dataclasses.replace(tokenizer, chat_template=None)
    train, test = _text_prompts.read_prompts(config, tokenizer, spec.rules)
    num_prompts = len(train.tokens)
    config.check_num_prompts("the number of prompts", num_prompts)
    devices = _mesh.make_mesh(config.mesh)
    placing = _mesh.placing_of(devices)
    policy, params = load_policy(config, tokenizer, devices)
    buckets = text.bucket_lengths(np.concatenate([train.lengths, test.lengths]), max_buckets=config.prompts.num_buckets)
    known = _text_prompts.known_prompts(config, train, policy, params, buckets)
    prior, options = _selection.selector_options(config, known, devices)
    selector = selectors.build(config.selector.method, num_prompts, **options)
    rollout = config.rollout
    sampling = {"temperature": rollout.temperature, "top_p": rollout.top_p, "top_k": rollout.top_k}
    sample = functools.partial(_text_policy.sample, policy, group_size=rollout.group_size, **sampling)
    log_probs = functools.partial(_text_policy.log_probs, policy, rollout.temperature)
    parts = _selection.build_round(config, selector, num_prompts, sample, None, log_probs, placing)
    pool = _start_pool(config, spec)
    graded = lambda prompts: _processes.shared_grading(
        TextGrader(tokenizer, pool, prompts.questions, rollout.stops).grade
    )
    how = HostRollout(
        sample_fn=_text_policy.sampler(policy, group_size=rollout.group_size, placing=placing, **sampling),
        prompts=train.tokens,
        buckets=buckets,
        chunk_size=min(rollout.chunk_size or rollout.batch_size, rollout.batch_size),
        grade=graded(train),
        placing=placing,
    )
    of_test = _testing(config, policy, how)._replace(prompts=test.tokens, grade=graded(test))
    collect = _host_rollout.collector(
        selector,
        how,
        batch_size=rollout.batch_size,
        num_prompts=num_prompts,
        max_batches=rollout.max_batches if rollout.collection == "dynamic" else None,
    )
    key = jax.random.fold_in(jax.random.key(config.seed), EVALUATION_KEY)
    return TextParts(
        params=params,
        round=parts,
        collect=collect,
        prior=prior,
        with_prior=selector.with_prior,
        groups=known.groups,
        features=known.features,
        group_names=known.group_names,
        predicted_success_rates=jax.jit(functools.partial(_selection.rate_shares, selector)),
        evaluate=functools.partial(_evaluate, of_test, test, key, config.eval_samples),
        answers=functools.partial(_answers, of_test, test, tokenizer),
        policies=_text_policy.policies(policy, Path(config.model)),
        fingerprint=_text_prompts.fingerprint(train),
        close=pool.close,
        prompts=train,
        test_prompts=test,
        policy=policy,
        how=how,
        notes=_notes(config, train, test),
        form=_mesh.StateForm(placing, selector),
    )


def _start_pool(config: TextConfig, spec: grading.GraderSpec) -> grading.GraderPool:
    """Starts the grading processes and returns them."""
    names = ("num_processes", "time_limit_s", "batch_limit_s", "threshold")
    return grading.GraderPool(spec, **{name: getattr(config.grader, name) for name in names})


def _notes(config: TextConfig, train: text.Prompts, test: text.Prompts) -> tuple[str, ...]:
    """Returns messages about the data to print before training."""
    found = f"{len(train.tokens):,} prompts to train on, {len(test.tokens):,} held out"
    if not train.num_dropped + test.num_dropped:
        return (found,)
    dropped = f"{train.num_dropped:,} prompts of {config.data} were dropped"
    if config.prompts.test_data is not None:
        dropped += f" and {test.num_dropped:,} of {config.prompts.test_data}"
    return (found, f"{dropped}, which are longer than {config.prompts.max_length} tokens")


def _testing(config: TextConfig, policy: TextPolicy, how: HostRollout) -> HostRollout:
    """Returns the rollout of held-out prompts, which shares the program of the training rounds if possible."""
    rollout = config.rollout
    asked = {"group_size": config.eval_samples, "temperature": config.eval_temperature, "top_p": 1.0, "top_k": None}
    if all(getattr(rollout, name) == value for name, value in asked.items()):
        return how
    chunk_size = max(1, _EVALUATION_ROWS // config.eval_samples)
    return how._replace(sample_fn=_text_policy.sampler(policy, placing=how.placing, **asked), chunk_size=chunk_size)


def _evaluate(
    how: HostRollout, test: text.Prompts, key: jax.Array, num_samples: int, params: Any, round_index: int
) -> dict[str, Any]:
    """Returns test results; see `RunParts.evaluate`."""
    ids = np.arange(len(test.tokens))
    batch, _ = _host_rollout.roll_out(how, params, ids, jax.random.fold_in(key, round_index))
    labels = [_text_prompts.group_of(question) for question in test.questions]
    names = sorted(set(labels))
    groups = np.array([names.index(label) for label in labels])
    found = _evaluation.summarise(_mesh.fetch(_evaluation.outcomes(batch)), groups, names, num_samples=num_samples)
    return _evaluation.to_metrics(found)


def _answers(
    how: HostRollout, test: text.Prompts, tokenizer: text.Tokenizer, params: Any, key: jax.Array
) -> list[tuple[str, str, bool]]:
    """Returns prompt, answer and correctness of the first held-out prompts; see `RunParts.answers`."""
    ids = np.arange(min(_NUM_EXAMPLES, len(test.tokens)))
    batch = _mesh.fetch(_host_rollout.roll_out(how, params, ids, key)[0])
    texts = [
        tokenizer.decode(tokens[mask]) for tokens, mask in zip(batch.completions[:, 0], batch.mask[:, 0], strict=True)
    ]
    prompts = [question.messages[-1]["content"] for question in test.questions[: ids.size]]
    return [
        (prompt, answer, bool(is_correct))
        for prompt, answer, is_correct in zip(prompts, texts, batch.is_correct[:, 0], strict=True)
    ]
