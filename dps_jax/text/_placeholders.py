"""Prompt templates: text with named placeholders such as {prompt}; braces around anything but a name are literal.

Any other name in braces is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dps_jax.text._messages import check_text

PROMPT, RULES = "prompt", "reward_rules"
# The first group is a name in double braces, which stands for the literal name in single braces.
_PATTERN = re.compile(r"\{\{([A-Za-z_]\w*)\}\}|\{([A-Za-z_]\w*)\}")


class Template(NamedTuple):
    """A text with placeholders.

    Attributes:
      pieces: literal texts and names of placeholders, alternating; the first and the last are literal.
    """

    pieces: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the placeholders, in the order of the text."""
        return self.pieces[1::2]

    def fill(self, values: Mapping[str, str]) -> str:
        """Returns the text with the values of the placeholders; braces in values are literal."""
        return "".join(values[piece] if place % 2 else piece for place, piece in enumerate(self.pieces))


def parse_template(name: str, text: str, known: Sequence[str], rules: str) -> Template:
    """Returns the template that a text describes.

    Args:
      name: name of the argument, for error messages.
      text: text with placeholders {NAME}; {{NAME}} stands for a literal {NAME}.
      known: names of placeholders that are allowed.
      rules: value of {reward_rules}.

    Raises:
      ValueError: for anything but a text, another name in braces, or {reward_rules} without rules.
    """
    check_text(name, text)
    pieces, end = [""], 0
    for match in _PATTERN.finditer(text):
        literal, placeholder = match.groups()
        pieces[-1] += text[end : match.start()]
        end = match.end()
        if literal is not None:
            pieces[-1] += f"{{{literal}}}"
            continue
        if placeholder not in known:
            shown = ", ".join(f"{{{each}}}" for each in known)
            raise ValueError(
                f"{name}: expected placeholders among {shown}, got {{{placeholder}}}; correct it, or write "
                f"{{{{{placeholder}}}}} for the text {{{placeholder}}} itself"
            )
        if placeholder == RULES and not rules.strip():
            raise ValueError(f"rules: expected a text, as {name} has {{{RULES}}}, got {rules!r}; state the rules")
        pieces += [placeholder, ""]
    pieces[-1] += text[end:]
    return Template(tuple(pieces))
