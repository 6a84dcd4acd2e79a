"""Templates of prompts: text with named placeholders such as {prompt}; every other brace is a brace."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dps_jax.text._messages import check_text

PROMPT, RULES = "prompt", "reward_rules"
# The first group is a name between two pairs of braces, which stands for the name between one.
_PATTERN = re.compile(r"\{\{([A-Za-z_]\w*)\}\}|\{([A-Za-z_]\w*)\}")


class Template(NamedTuple):
    """A text with placeholders.

    Attributes:
      pieces: literal texts and names of placeholders in turn; the first and the last are literal.
    """

    pieces: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The placeholders, in the order of the text."""
        return self.pieces[1::2]

    def fill(self, values: Mapping[str, str]) -> str:
        """Returns the text with values in place of the names; braces in values stay what they are."""
        return "".join(values[piece] if place % 2 else piece for place, piece in enumerate(self.pieces))


def parse_template(name: str, text: str, known: Sequence[str], rules: str) -> Template:
    """Returns a template.

    Args:
      name: of the argument, for messages.
      text: with placeholders {NAME}; {{NAME}} stands for a literal {NAME}.
      known: the placeholders that may be there.
      rules: what {reward_rules} will be filled with.

    Raises:
      ValueError: for anything but a text, an unknown placeholder, and {reward_rules} where there are no rules.
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
