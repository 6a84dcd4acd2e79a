"""Chat templates: Jinja programs that come with a model and turn messages into its text; run in a sandbox.

Importing this needs jinja2, so that it is imported only for tokenizers with a template.
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
    """The block `{% generation %}`, which marks what a model wrote itself; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 the class of jinja2 has a plain attribute, too

    def parse(self, parser: parser.Parser) -> nodes.Node:
        """Returns the content of a block, with a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@functools.lru_cache(maxsize=16)
def compile_template(source: str) -> jinja2.Template:
    """Returns a template that renders as `transformers` renders it; compiled once per process.

    Raises:
      jinja2.TemplateError: for text that is no template.
    """
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    # The filter of jinja2 escapes for HTML.
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def render(
    source: str, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, variables: Mapping[str, Any]
) -> str:
    """Returns the text of a conversation.

    Args:
      source: of the template.
      messages: of the conversation.
      add_generation_prompt: end in what comes before an answer of the model.
      variables: others that the template may read, such as special tokens.

    Raises:
      Exception: whatever the template raises.
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
