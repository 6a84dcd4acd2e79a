"""Tokenizers in Hugging Face's folders: text to tokens and back, messages to text, and which tokens end a completion.

They need `tokenizers`, and jinja2 where there is a chat template: the extra `text`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dps_jax import _checks
from dps_jax.text import _tokenizer_files as files
from dps_jax.text._messages import check_messages, check_text


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to tokens and back, with the chat template of a model.

    It pickles with all that it needs, and does not read the folder again.

    Attributes:
      folder: that it was read from.
      num_tokens: the highest id + 1, added tokens included; models may have more rows, which stand for no token.
      end_ids: tokens that end a completion: those that the model's files name, and the tokenizer's own.
      pad_id: the padding token, or the first end id where there is none.
      special_ids: tokens that are no text, such as those around messages, in increasing order.
      special_tokens: texts of those that have a role, such as "eos_token"; chat templates read them.
      chat_template: a Jinja program; None for a base model without one.
      backend: a `tokenizers.Tokenizer`.
    """

    folder: str
    num_tokens: int
    end_ids: tuple[int, ...]
    pad_id: int
    special_ids: tuple[int, ...]
    special_tokens: Mapping[str, str] = dataclasses.field(repr=False)
    chat_template: str | None = dataclasses.field(repr=False)
    backend: Any = dataclasses.field(repr=False)

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text.

        None are added, as chat templates have those that a model wants at the start. A special token that is spelled
        out in the text becomes that token.

        Raises:
          ValueError: for anything but a text that UTF-8 has.
        """
        check_text("text", text)
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of many texts, on all cores; see `encode`.

        Raises:
          ValueError: for anything but texts that UTF-8 has.
        """
        for position, text in enumerate(texts):
            check_text(f"texts[{position}]", text)
        return [found.ids for found in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        """Returns the text of some tokens, spaces as they are; ids without a token have none.

        Args:
          ids: integers >= 0, also as an array.
          keep_special: with the names of special tokens; otherwise those are left out.

        Raises:
          ValueError: for a number that is not whole, or below 0.
        """
        found = _checks.check_integer_array("ids", ids)
        if found.size and (found.min() < 0 or found.max() >= 2**32):
            raise ValueError(f"ids: expected integers in [0, 2**32), got {found.min()} to {found.max()}; mask padding")
        kept = found.tolist()
        if not keep_special:
            special = set(self.special_ids)
            kept = [token for token in kept if token not in special]
        return self.backend.decode(kept, skip_special_tokens=False)

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Returns the text of a conversation by the chat template; without one, the contents joined by newlines.

        Example: `tokenizer.render([{"role": "user", "content": "2 + 2?"}], enable_thinking=False)`.

        Args:
          messages: mappings with the texts "role" and "content", and perhaps more that the template reads.
          add_generation_prompt: end in what comes before an answer of the model.
          **variables: that the template reads, such as `enable_thinking` of Qwen3. Base models ignore them.

        Raises:
          ValueError: for no messages or others, and, naming the folder, where the template fails.
        """
        check_messages("messages", messages)
        if self.chat_template is None:
            return "\n".join(message["content"] for message in messages)
        given = {**self.special_tokens, **variables}
        chat = files.import_chat(self.folder)
        try:
            return chat.render(
                self.chat_template, messages, add_generation_prompt=add_generation_prompt, variables=given
            )
        except Exception as error:  # a template is a program of somebody else and may raise anything
            raise ValueError(
                f"{self.folder}: expected a chat template that accepts the messages, got {type(error).__name__}: "
                f"{error!s:.300}; are their roles and order, and the variables {sorted(variables)}, those that this "
                "model takes?"
            ) from error

    def check_fits(self, vocab_size: int) -> None:
        """Raises ValueError, naming the folder, if there are tokens that a model of this many rows does not have."""
        size = _checks.check_int("vocab_size", vocab_size, at_least=1)
        if self.num_tokens > size:
            raise ValueError(
                f"{self.folder}: expected a tokenizer with ids below vocab_size = {size}, got {self.num_tokens} "
                "tokens; take the tokenizer that belongs to the model"
            )


def load_tokenizer(folder: os.PathLike[str] | str) -> Tokenizer:
    """Returns the tokenizer in a folder of Hugging Face's layout, which `transformers` and the Hub write.

    Read are tokenizer.json and tokenizer_config.json, and if they are there: chat_template.jinja, which comes before a
    template in tokenizer_config.json; special_tokens_map.json; generation_config.json or else config.json, for the
    tokens that end a completion.

    Example: `load_tokenizer("Qwen3-0.6B").encode("2 + 2?")`.

    Raises:
      ValueError: naming the file, if one is missing or damaged, a special token is not in the vocabulary, there is no
        token that ends a completion, or the chat template is none; and without the extra `text`.
    """
    _checks.check_path("folder", folder)
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"folder: expected one with {files.TOKENIZER}, got {str(folder)!r}, which is none; download the model "
            "first (hf download NAME --local-dir FOLDER)"
        )
    backend = files.read_backend(folder / files.TOKENIZER)
    ids: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    if not ids:
        raise ValueError(f"{folder / files.TOKENIZER}: expected a vocabulary, got none; {files.REMEDY}")
    num_tokens = max(ids.values()) + 1
    config = files.read_config(folder)
    tokens = files.special_tokens(folder, config, ids)
    path, ends, pads = files.model_ids(folder, num_tokens)
    ends = ends + ([ids[tokens["eos_token"]]] if "eos_token" in tokens else [])
    if not ends:
        raise ValueError(
            f"{folder / files.CONFIG}: eos_token: expected a token that ends a completion, got none there nor in "
            f"{path.name}; add the field"
        )
    pads = ([ids[tokens["pad_token"]]] if "pad_token" in tokens else []) + pads + ends
    flagged = [token for token, added in backend.get_added_tokens_decoder().items() if added.special]
    return Tokenizer(
        folder=str(folder),
        num_tokens=num_tokens,
        end_ids=tuple(dict.fromkeys(ends)),
        pad_id=pads[0],
        special_ids=tuple(sorted({*flagged, *ends, pads[0], *(ids[text] for text in tokens.values())})),
        special_tokens=tokens,
        chat_template=files.chat_template(folder, config),
        backend=backend,
    )
