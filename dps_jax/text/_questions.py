"""Questions to train on, from files: what is asked, what the right answer is, and what else is known about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dps_jax import _checks
from dps_jax.text._messages import check_messages, check_text
from dps_jax.text._placeholders import PROMPT, RULES, Template, parse_template
from dps_jax.text._rows import Rows, as_json, files_of, read_rows

# Our names of columns, and those in files, of which the first that is there is taken: verl's and plain ones.
_COLUMNS = {
    "prompt": ("prompt",),
    "answer": ("reward_model.ground_truth", "answer"),
    "source": ("data_source",),
    "group": ("group",),
}
_REQUIRED = ("prompt", "answer")
_MISSING = object()
_LISTED = 40


class Question(NamedTuple):
    """A prompt of a data file.

    Attributes:
      messages: of the conversation that the model is to continue, each {"role": ..., "content": ...}.
      answer: what completions are checked against, any value that JSON has but null.
      source: the data set that it comes from; "" if the file does not name one.
      group: the prompt group (level, topic); None is unknown.
      info: all other columns of the row, values that JSON has.
    """

    messages: tuple[dict[str, str], ...]
    answer: Any
    source: str
    group: str | None
    info: Mapping[str, Any]


class _Asking(NamedTuple):
    """How messages are made of a prompt.

    Attributes:
      prompt: the template of the message of the user.
      system: the text of the first message; None leaves it as it is.
      rules: what {reward_rules} is filled with.
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

    Files end in `.parquet`, `.jsonl`, `.json`, `.jsonl.gz` or `.json.gz`. A row has verl's columns (prompt, a list of
    messages; reward_model.ground_truth; data_source) or plain ones: prompt, a text or messages; answer; and perhaps
    group and data_source. All other columns are kept as `Question.info`.

    Example: `read_questions("gsm8k.jsonl", columns={"prompt": "question"}, prompt_template="{prompt}\nThink first.")`.

    Args:
      paths: of a file or of a folder with such files, or several.
      columns: names in the files by ours: prompt, answer, source, group. Dots lead into a column of objects, as in
        "extra_info.level".
      prompt_template: of the message of the user, the last one where there are several, with placeholders {prompt} and
        {reward_rules}. Other braces, and those of the prompt, stay what they are; {{prompt}} is a literal {prompt}.
      system_prompt: text of the first message, of the role system, in place of one that is there; it may have
        {reward_rules}. None leaves the messages as they are.
      rules: what {reward_rules} is filled with: how completions are graded, in words.

    Returns:
      The questions, at least one.

    Raises:
      ValueError: naming the file, and the row and column where there are some: a path that does not exist, an empty or
        damaged file, a line that is no JSON object, a column that is missing, a row without an answer, a prompt
        that is neither a text nor messages; for an unknown placeholder or name in `columns`; for {reward_rules}
        without rules; and without pyarrow, for `.parquet`.

    Source: that the model is shown the rules that it is graded by is the idea of MeRF, arXiv 2506.18485.
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
    """Returns the columns of a file by our names, as its first row has them."""
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
    """Returns the names of columns, with those of the fields of objects."""
    names = []
    for name, value in row.items():
        names += [f"{name}.{field}" for field in value] if isinstance(value, dict) and value else [str(name)]
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _at(row: Mapping[str, Any], column: str) -> Any:
    """Returns what a row has in a column, or in a field of it, by a path with dots."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _as_label(label: Callable[[str], str], name: str, value: Any) -> str | None:
    """Returns a text or number as a text; None for neither, or for a blank one."""
    value = None if value is _MISSING else as_json(value)
    if value is None:
        return None
    if isinstance(value, (list, dict)):
        raise ValueError(f"{label(name)}: expected a text or a number, got {value!r:.80}; name another column")
    # Whole numbers become floating where some of a column are missing.
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return text.strip() or None


def _messages(label: str, prompt: Any, asking: _Asking) -> tuple[dict[str, str], ...]:
    """Returns the messages of a prompt.

    Args:
      label: what errors begin with: the file, the row and the column.
      prompt: what the row has.
      asking: what is put around it.
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
    """Returns the role and the content of a message that has nothing else; fields of others are null in `.parquet`."""
    others = [name for name, value in message.items() if name not in ("role", "content") and value is not None]
    if others:
        raise ValueError(f"{label}: expected a role and a content, got {others[0]!r:.40} as well; remove it")
    return {"role": message["role"], "content": message["content"]}
