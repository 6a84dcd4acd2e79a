"""Renders chat templates, the Jinja programs of a model that turn messages into text, in a sandbox.

This module imports jinja2, and is therefore imported only for tokenizers with a template.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import ext, nodes, parser, sandbox


class _Generation(ext.Extension):
    """The block `{% generation %}`, which marks text of the model; only its content is rendered."""

    tags = {"generation"}  # noqa: RUF012 a plain attribute in the class of jinja2, too

    def parse(self, parser: parser.Parser) -> nodes.Node:
        """Returns the content of a block as a node with a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@functools.lru_cache(maxsize=16)
def compile_template(source: str) -> jinja2.Template:
    """Returns a compiled template that renders as in `transformers`; the last 16 templates are cached.

    Raises:
      jinja2.TemplateError: for a text that is not a valid template.
    """
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    # The filter `tojson` of jinja2 escapes for HTML.
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def render(
    source: str, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, variables: Mapping[str, Any]
) -> str:
    """Returns the text of a conversation.

    Args:
      source: text of the template.
      messages: messages of the conversation.
      add_generation_prompt: whether to end with the text that precedes an answer of the model.
      variables: other variables of the template, such as special tokens.

    Raises:
      Exception: any exception that the template raises.
    """
    given = {"tools": None, "documents": None, **variables}
    return compile_template(source).render(
        messages=[dict(message) for message in messages], add_generation_prompt=add_generation_prompt, **given
    )


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
