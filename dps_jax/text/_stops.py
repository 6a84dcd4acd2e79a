"""Stops are texts that end a completion: during sampling if one token contains the stop, and otherwise afterwards."""

from __future__ import annotations

from collections.abc import Sequence

from dps_jax.text._messages import check_text
from dps_jax.text._tokenizer import Tokenizer


def check_stops(stops: Sequence[str]) -> tuple[str, ...]:
    """Checks texts that end a completion, and returns them as a tuple.

    Args:
      stops: texts that end a completion, a list or tuple.

    Raises:
      ValueError: if `stops` is not a list or tuple, or an entry is not a text or is empty.

    Example:
      >>> from dps_jax import text
      >>> text.check_stops(["Question:", "####"])
      ('Question:', '####')
    """
    if not isinstance(stops, (tuple, list)):
        raise ValueError(f"stops: expected a list of texts, got {stops!r}")
    for position, stop in enumerate(stops):
        check_text(f"stops[{position}]", stop)
        if not stop:
            raise ValueError(f"stops[{position}]: expected a text, got an empty one, which would end every completion")
    return tuple(stops)


def stop_ids(tokenizer: Tokenizer, stops: Sequence[str]) -> tuple[int, ...]:
    """Returns the ids of the tokens whose text contains a stop, to be given to sampling as end tokens.

    Args:
      tokenizer: tokenizer of the model.
      stops: texts that end a completion.

    Raises:
      ValueError: see `check_stops`.

    Example:
      >>> import pathlib, tokenizers
      >>> from dps_jax import text
      >>> backend = tokenizers.Tokenizer(tokenizers.models.BPE({"<end>": 0, "2": 1, "+": 2, "=": 3, "4": 4}, []))
      >>> backend.save("tokenizer.json")
      >>> _ = pathlib.Path("tokenizer_config.json").write_text('{"eos_token": "<end>"}')
      >>> tokenizer = text.load_tokenizer(".")
      >>> text.stop_ids(tokenizer, ["=", "4+"])  # "4+" is two tokens; `end_of` finds it after sampling
      (3,)
    """
    stops = check_stops(stops)
    if not stops:
        return ()
    texts = ((token, tokenizer.decode([token], keep_special=True)) for token in range(tokenizer.num_tokens))
    return tuple(token for token, text in texts if any(stop in text for stop in stops))


def end_of(tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str]) -> tuple[int, str]:
    """Returns the length of a completion up to its first stop, and its text before that stop.

    Args:
      tokenizer: tokenizer of the model.
      ids: tokens of the completion, its end token included.
      stops: texts that end a completion.

    Returns:
      The number of tokens up to and including the one that completes the first stop, where the completion is to be cut;
      and the text before the stop. Without a stop, the number of all tokens, and the whole text.

    Example:
      >>> import pathlib, tokenizers
      >>> from dps_jax import text
      >>> backend = tokenizers.Tokenizer(tokenizers.models.BPE({"<end>": 0, "2": 1, "+": 2, "=": 3, "4": 4}, []))
      >>> backend.decoder = tokenizers.decoders.Fuse()
      >>> backend.save("tokenizer.json")
      >>> _ = pathlib.Path("tokenizer_config.json").write_text('{"eos_token": "<end>"}')
      >>> tokenizer = text.load_tokenizer(".")
      >>> text.end_of(tokenizer, tokenizer.encode("2+2=4+4"), stops=["4+"])
      (6, '2+2=')
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
