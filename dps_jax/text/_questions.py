"""Reads questions to train on from data files: prompt, answer, and further columns."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dps_jax import _checks
from dps_jax._documented import documented
from dps_jax.text._messages import check_messages, check_text
from dps_jax.text._placeholders import PROMPT, RULES, Template, parse_template
from dps_jax.text._rows import Rows, as_json, files_of, read_rows

# Our names of columns, and their usual names in files, of which the first that exists is used.
_COLUMNS = {
    "prompt": ("prompt",),
    "answer": ("reward_model.ground_truth", "answer"),
    "source": ("data_source",),
    "group": ("group",),
}
_REQUIRED = ("prompt", "answer")
_MISSING = object()
_LISTED = 40


@documented
class Question(NamedTuple):
    """A prompt from a data file and its reference answer, as returned by `read_questions`.

    Attributes:
      messages: messages of the conversation that the model continues, each {"role": ..., "content": ...}.
      answer: reference that completions are checked against, any JSON value but null and blank text.
      source: name of the data set; "" if the file does not have it.
      group: prompt group, such as a level or a topic; None if it is unknown.
      info: all other columns of the row, as JSON values, and the columns of objects of which one field was used.

    Example:
      >>> from dps_jax import text
      >>> messages = ({"role": "user", "content": "2 + 2?"},)
      >>> question = text.Question(messages, answer="4", source="sums", group="easy", info={"id": 17})
      >>> question.messages[-1]["content"], question.answer
      ('2 + 2?', '4')
    """

    messages: tuple[dict[str, str], ...]
    answer: Any
    source: str
    group: str | None
    info: Mapping[str, Any]


class _Asking(NamedTuple):
    """The texts that turn a prompt into messages.

    Attributes:
      prompt: template of the message of the user.
      system: text of the system message; None keeps the messages as they are.
      rules: value of {reward_rules}.
    """

    prompt: Template
    system: str | None
    rules: str


def read_questions(
    paths: os.PathLike[str] | str | Sequence[os.PathLike[str] | str],
    *,
    columns: Mapping[str, str] | None = None,
    prompt_template: str = "{prompt}",
    system_prompt: str | None = None,
    rules: str = "",
) -> list[Question]:
    r"""Returns the questions in data files, in their order.

    Files end in `.parquet`, `.jsonl`, `.json`, `.jsonl.gz` or `.json.gz`. A row has either the columns of verl
    (`prompt`, a list of messages; `reward_model.ground_truth`; `data_source`) or plain columns (`prompt`, a text or
    messages; `answer`; optionally `group` and `data_source`). The first row of a file decides which of these columns
    the file has. All other columns are kept in `Question.info`.

    Args:
      paths: path of a file or of a folder with such files, or several paths.
      columns: mapping from our column names, "prompt", "answer", "source" and "group", to the names of the columns in
        the files, where they differ. A dot selects a field in a column of objects, as in "extra_info.level".
      prompt_template: template of the last user message, with the placeholders {prompt} and {reward_rules}. Other
        names in braces are errors; {{name}} stands for a literal {name}. All other braces are literal, including those
        of the prompt.
      system_prompt: text of a system message, which replaces an existing one or is inserted at the beginning; it may
        contain {reward_rules}. None keeps the messages as they are.
      rules: text that replaces {reward_rules}: how completions are graded, such as `rules` of a `grading.GraderSpec`.

    Returns:
      The questions, at least one.

    Raises:
      ValueError: for a path that does not exist, an empty or damaged file, a line that is not a JSON object, a column
        that is missing, a row without an answer, or a prompt that is neither a text nor messages; the message names the
        file and, where possible, the row and the column. Also for an unknown name in `columns`, an unknown placeholder,
        a `prompt_template` without {prompt}, {reward_rules} without rules, and without pyarrow for `.parquet`.

    Example:
      >>> from pathlib import Path
      >>> from dps_jax import text
      >>> _ = Path("train.jsonl").write_text('{"question": "2 + 2?", "answer": "4", "level": 1}')
      >>> columns = {"prompt": "question", "group": "level"}
      >>> (question,) = text.read_questions("train.jsonl", columns=columns, prompt_template="{prompt} Think first.")
      >>> question.messages[0]["content"], question.answer, question.group
      ('2 + 2? Think first.', '4', '1')

    Source: the idea to state the grading rules in the prompt is from MeRF, arXiv 2506.18485.
    """
    columns = _checked_columns(columns)
    check_text("rules", rules)
    prompt = parse_template("prompt_template", prompt_template, (PROMPT, RULES), rules)
    if PROMPT not in prompt.names:
        raise ValueError(f"prompt_template: expected {{{PROMPT}}} in it, got {prompt_template!r:.80}; add it")
    system = None
    if system_prompt is not None:
        system = parse_template("system_prompt", system_prompt, (RULES,), rules).fill({RULES: rules})
    asking = _Asking(prompt, system, rules)
    return [question for path in files_of(paths) for question in _read(read_rows(path), columns, asking)]


def _checked_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    if columns is None:
        return {}
    _checks.check_instance("columns", columns, Mapping)
    _checks.check_options("columns", columns, tuple(_COLUMNS))
    for name, column in columns.items():
        check_text(f"columns[{name!r}]", column)
    return dict(columns)


def _read(rows: Rows, columns: Mapping[str, str], asking: _Asking) -> list[Question]:
    """Returns the questions of a file."""
    names = _names_in_file(rows, columns)
    used = set(names.values())
    questions = []
    for row, place in zip(rows.values, rows.places, strict=True):
        label = lambda name, place=place: f"{rows.path}: {place}: {names[name]}"
        found = {name: _at(row, column) for name, column in names.items()}
        answer = as_json(None if found["answer"] is _MISSING else found["answer"])
        if answer is None or (isinstance(answer, str) and not answer.strip()):
            raise ValueError(f"{label('answer')}: expected the right answer, got none; add it or leave the row out")
        group, source = (_as_label(label, name, found.get(name, _MISSING)) for name in ("group", "source"))
        questions.append(
            Question(
                messages=_messages(label("prompt"), found["prompt"], asking),
                answer=answer,
                source=source or "",
                group=group,
                info={name: as_json(value) for name, value in row.items() if name not in used},
            )
        )
    return questions


def _names_in_file(rows: Rows, columns: Mapping[str, str]) -> dict[str, str]:
    """Returns the names of the columns in a file, by our names, from its first row."""
    first, found = rows.values[0], {}
    for name, usual in _COLUMNS.items():
        candidates = (columns[name],) if name in columns else usual
        column = next((candidate for candidate in candidates if _at(first, candidate) is not _MISSING), None)
        if column is not None:
            found[name] = column
        elif name in columns or name in _REQUIRED:
            raise ValueError(
                f"{rows.path}: {name}: expected a column {' or '.join(candidates)}, got {_listed(first)}; name the one "
                f'to take, columns={{"{name}": ...}}'
            )
    return found


def _listed(row: Mapping[str, Any]) -> str:
    """Returns the names of columns for an error message, with those of the fields of objects."""
    names = []
    for name, value in row.items():
        names += [f"{name}.{field}" for field in value] if isinstance(value, dict) and value else [str(name)]
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _at(row: Mapping[str, Any], column: str) -> Any:
    """Returns the value of a column of a row, or of a field of it, by a path with dots."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _as_label(label: Callable[[str], str], name: str, value: Any) -> str | None:
    """Returns a text or number as a text; None for a missing or blank value."""
    value = None if value is _MISSING else as_json(value)
    if value is None:
        return None
    if isinstance(value, (list, dict)):
        raise ValueError(f"{label(name)}: expected a text or a number, got {value!r:.80}; name another column")
    # Whole numbers of a column with missing values are read as floats.
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return text.strip() or None


def _messages(label: str, prompt: Any, asking: _Asking) -> tuple[dict[str, str], ...]:
    """Returns the messages of a prompt.

    Args:
      label: beginning of error messages: the file, the row and the column.
      prompt: value of the row.
      asking: templates to fill with the prompt.
    """
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
        check_text(label, prompt)
    elif isinstance(prompt, list):
        check_messages(label, prompt)
        messages = [_plain_message(f"{label}[{place}]", message) for place, message in enumerate(prompt)]
    else:
        got = "none" if prompt is None or prompt is _MISSING else repr(prompt)
        raise ValueError(f"{label}: expected a text or a list of messages, got {got:.80}; convert it")
    last = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None or not messages[last]["content"].strip():
        raise ValueError(f"{label}: expected a message of the user that is not blank, got none; leave the row out")
    filled = asking.prompt.fill({PROMPT: messages[last]["content"], RULES: asking.rules})
    messages[last] = {"role": "user", "content": filled}
    if asking.system is not None:
        others = [message for message in messages if message["role"] != "system"]
        messages = [{"role": "system", "content": asking.system}, *others]
    return tuple(messages)


def _plain_message(label: str, message: Mapping[str, Any]) -> dict[str, str]:
    """Returns the role and the content of a message, which has no other fields but null ones of `.parquet`."""
    others = [name for name, value in message.items() if name not in ("role", "content") and value is not None]
    if others:
        raise ValueError(f"{label}: expected a role and a content, got {others[0]!r:.40} as well; remove it")
    return {"role": message["role"], "content": message["content"]}
