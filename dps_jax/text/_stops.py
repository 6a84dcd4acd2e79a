"""Texts that end a completion: those that single tokens hold end it as it is sampled, all others are cut off after."""

from __future__ import annotations

from collections.abc import Sequence

from dps_jax.text._messages import check_text
from dps_jax.text._tokenizer import Tokenizer


def check_stops(stops: Sequence[str]) -> tuple[str, ...]:
    """Returns the texts that end a completion.

    Raises:
      ValueError: for anything but texts that are not empty.
    """
    if not isinstance(stops, (tuple, list)):
        raise ValueError(f"stops: expected a list of texts, got {stops!r}")
    for position, stop in enumerate(stops):
        check_text(f"stops[{position}]", stop)
        if not stop:
            raise ValueError(f"stops[{position}]: expected a text, got an empty one, which would end every completion")
    return tuple(stops)


def stop_ids(tokenizer: Tokenizer, stops: Sequence[str]) -> tuple[int, ...]:
    """Returns the tokens whose own text holds one of the stops: a completion ends with them whatever came before."""
    stops = check_stops(stops)
    if not stops:
        return ()
    texts = ((token, tokenizer.decode([token], keep_special=True)) for token in range(tokenizer.num_tokens))
    return tuple(token for token, text in texts if any(stop in text for stop in stops))


def end_of(tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str]) -> tuple[int, str]:
    """Returns how many tokens of a completion count, and its text in front of the first stop.

    Args:
      tokenizer: of the model.
      ids: tokens of the completion, its end included.
      stops: texts that end it. The token with which the first of them is complete is the last that counts.
    """
    text = tokenizer.decode(ids)
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    if not places:
        return len(ids), text
    holds_stop = lambda count: any(stop in tokenizer.decode(ids[:count]) for stop in stops)
    few, enough = 0, len(ids)
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if holds_stop(middle) else (middle, enough)
    return enough, text[: min(places)]
