"""Checks of texts and of the messages of conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def check_text(name: str, value: Any) -> None:
    """Raises a ValueError if `value` is not a text that UTF-8 can encode."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a text, got {value!r:.80}; convert it")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            shown = value[error.start : error.end][:1]
            raise ValueError(
                f"{name}: expected Unicode text, got half a surrogate pair, {shown!r} at position {error.start}; "
                "remove it"
            ) from error


def check_messages(name: str, value: Any) -> None:
    """Raises a ValueError if `value` is not a sequence of messages with the texts "role" and "content"."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ValueError(f'{name}: expected messages {{"role": ..., "content": ...}}, got {value!r:.80}; pass a list')
    for position, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise ValueError(f"{name}[{position}]: expected a mapping, got {message!r:.80}; give a role and a content")
        for field in ("role", "content"):
            if field not in message:
                raise ValueError(f"{name}[{position}]: expected a {field}, got keys {list(message)!r:.80}; add it")
            check_text(f"{name}[{position}].{field}", message[field])
