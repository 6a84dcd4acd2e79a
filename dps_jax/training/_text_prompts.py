"""The prompts of a run on a data file, and the information about them that its selector may use."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dps_jax import text
from dps_jax.training import _host_rollout, _mesh, _selection, _text_policy
from dps_jax.training._text_config import TextConfig
from dps_jax.training._text_policy import TextPolicy

# Number of prompts whose log-probs are computed together.
_SCORED_PROMPTS = 32
# Entry of `Question.info` with the row of the question in the data file, which selects its features.
_ROW = "dps_jax.row"


def read_prompts(config: TextConfig, tokenizer: text.Tokenizer, rules: str) -> tuple[text.Prompts, text.Prompts]:
    """Returns the training prompts and the held-out prompts.

    Held-out prompts that come from the training file are the same for all seeds. Training prompts that are equal to a
    held-out prompt are left out.

    Raises:
      ValueError: for files that cannot be used, or if no training prompts are left.
    """
    fields = config.prompts
    read = functools.partial(
        text.read_questions,
        columns=fields.column_names(),
        prompt_template=fields.template,
        system_prompt=fields.system,
        rules=rules,
    )
    encode = functools.partial(
        text.encode_questions,
        tokenizer=tokenizer,
        max_length=fields.max_length,
        too_long=fields.too_long,
        **fields.chat_variables(),
    )
    questions = [_numbered(question, row) for row, question in enumerate(read(config.data))]
    found = encode(questions)
    if fields.test_data is not None:
        test = _some(encode(read(fields.test_data)), range(fields.num_test))
    else:
        order = np.random.default_rng(0).permutation(len(found.tokens))
        test = _some(found, sorted(order[: fields.num_test].tolist()))
    held_out = {tokens.tobytes() for tokens in test.tokens}
    rows = [row for row, tokens in enumerate(found.tokens) if tokens.tobytes() not in held_out]
    train = _some(found, rows[: fields.num_train])
    if not train.tokens:
        raise ValueError(
            f"{config.data}: expected prompts to train on beside {len(test.tokens)} that are held out, got "
            f"{len(found.tokens)} in all; set --prompts.test-data to a file of held-out questions, or lower "
            "--prompts.num-test"
        )
    return train, test


def _numbered(question: text.Question, row: int) -> text.Question:
    """Returns a question with the number of its row in the data file, for the features of rows."""
    return question._replace(info={**question.info, _ROW: row})


def _some(prompts: text.Prompts, rows: Sequence[int]) -> text.Prompts:
    """Returns the prompts at the given positions; positions beyond the last prompt are ignored."""
    rows = [row for row in rows if row < len(prompts.tokens)]
    return text.Prompts(
        tokens=tuple(prompts.tokens[row] for row in rows),
        questions=tuple(prompts.questions[row] for row in rows),
        lengths=prompts.lengths[rows],
        num_dropped=prompts.num_dropped,
    )


def group_of(question: text.Question) -> str:
    """Returns the name of the prompt group of a question: its entry in the column group, or else its source."""
    return question.group or question.source or "all"


def known_prompts(
    config: TextConfig, prompts: text.Prompts, policy: TextPolicy, params: Any, buckets: tuple[int, ...]
) -> _selection.Prompts:
    """Returns the information about the training prompts that a selector may use.

    Raises:
      ValueError: for a file of features that cannot be read, or does not fit the data file.
    """
    labels = [group_of(question) for question in prompts.questions]
    group_names = sorted(set(labels))
    columns = []
    names = config.prompts.features
    if "length" in names:
        columns.append(np.log(prompts.lengths)[:, None])
    if "source" in names:
        sources = [question.source for question in prompts.questions]
        # An indicator for every source but the first; with a single source there is none.
        columns.extend(np.array([[source == name] for source in sources]) for name in sorted(set(sources))[1:])
    if "log-prob" in names:
        columns.append(_prompt_log_probs(prompts, policy, params, buckets)[:, None])
    if config.prompts.feature_file is not None:
        columns.append(_features_of_file(config.prompts.feature_file, prompts))
    features = np.concatenate([np.zeros((len(labels), 0)), *columns], axis=1)
    return _selection.Prompts(
        groups=np.array([group_names.index(label) for label in labels], np.int32),
        features=features.astype(np.float32),
        group_names=group_names,
    )


def _prompt_log_probs(prompts: text.Prompts, policy: TextPolicy, params: Any, buckets: tuple[int, ...]) -> np.ndarray:
    """Returns the mean log-prob of the tokens of every prompt under the policy before training, [N]."""
    score = jax.jit(functools.partial(_text_policy.prompt_log_probs, policy))
    found = np.zeros(len(prompts.tokens))
    order = np.argsort(prompts.lengths, kind="stable")
    for start in range(0, order.size, _SCORED_PROMPTS):
        rows = order[start : start + _SCORED_PROMPTS]
        width = buckets[int(text.bucket_of([prompts.lengths[rows].max()], buckets)[0])]
        filled = np.resize(rows, _SCORED_PROMPTS)
        tokens = _host_rollout.padded([prompts.tokens[row] for row in filled], width)
        found[rows] = _mesh.fetch(score(params, tokens))[: rows.size]
    return found


def _features_of_file(path: Path, prompts: text.Prompts) -> np.ndarray:
    """Returns the features of the prompts from a file with a row for each row of the data file, [N, D]."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a .npy file with features, got an error: {error}") from None
    rows = [question.info[_ROW] for question in prompts.questions]
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iuf":
        raise ValueError(f"{path}: expected numbers of shape [rows of the data file, D], got something else")
    if len(values) <= max(rows):
        raise ValueError(
            f"{path}: expected a row of features for each of the rows of the data file, at least {max(rows) + 1}, got "
            f"{len(values)}"
        )
    if not np.all(np.isfinite(values[rows])):
        bad = rows[int(np.argmin(np.all(np.isfinite(values[rows]), axis=1)))]
        raise ValueError(f"{path}: expected finite numbers, got others in row {bad}")
    return values[rows].astype(np.float64)


def fingerprint(prompts: text.Prompts) -> int:
    """Returns a checksum of prompts and answers, in their order."""
    checksum = 0
    for tokens, question in zip(prompts.tokens, prompts.questions, strict=True):
        checksum = zlib.crc32(tokens.tobytes(), checksum)
        checksum = zlib.crc32(json.dumps(question.answer, sort_keys=True, default=str).encode(), checksum)
    return checksum
