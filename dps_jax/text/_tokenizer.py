"""Tokenizers from folders in Hugging Face's layout, with chat templates and the tokens that end a completion.

Tokenizers need the packages of the extra `text`: `tokenizers`, and jinja2 for chat templates.
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
    """The tokenizer and the chat template of a model, as returned by `load_tokenizer`.

    A tokenizer can be pickled; unpickling does not read the folder again.

    Attributes:
      folder: folder that the tokenizer was read from.
      num_tokens: highest token id + 1, added tokens included; the embedding of a model may have more rows, which belong
        to no token.
      end_ids: token ids that end a completion, from the files of the model and of the tokenizer.
      pad_id: token id of padding, or the first of `end_ids` if the files have none.
      special_ids: ids of special tokens, such as those around messages, in increasing order.
      special_tokens: texts of special tokens by role, such as "eos_token", for chat templates.
      chat_template: Jinja program that renders messages; None for a base model without one.
      backend: the `tokenizers.Tokenizer`.

    Example:
      >>> import pathlib, tokenizers
      >>> from dps_jax import text
      >>> backend = tokenizers.Tokenizer(tokenizers.models.BPE({"<end>": 0, "2": 1, "+": 2, "=": 3, "4": 4}, []))
      >>> backend.decoder = tokenizers.decoders.Fuse()
      >>> backend.save("tokenizer.json")
      >>> _ = pathlib.Path("tokenizer_config.json").write_text('{"eos_token": "<end>"}')
      >>> tokenizer = text.load_tokenizer(".")
      >>> tokenizer.decode([1, 2, 1, 0]), tokenizer.render([{"role": "user", "content": "2+2="}])
      ('2+2', '2+2=')
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

        No special tokens are added, as chat templates contain those that a model needs. If the text contains the text
        of a special token, that part is encoded as the special token.

        Raises:
          ValueError: if the argument is not a text, or cannot be encoded as UTF-8.
        """
        check_text("text", text)
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of many texts, which are encoded on all cores; see `encode`.

        Raises:
          ValueError: if an argument is not a text, or cannot be encoded as UTF-8.
        """
        for position, text in enumerate(texts):
            check_text(f"texts[{position}]", text)
        return [found.ids for found in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        """Returns the text of tokens, with unchanged spaces; ids that belong to no token have no text.

        Args:
          ids: token ids, integers >= 0, a sequence or an array.
          keep_special: whether the texts of special tokens are kept; by default they are left out.

        Raises:
          ValueError: for an id that is not an integer >= 0.
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
        """Returns a conversation as one text, rendered by the chat template.

        Without a template, the text is the contents of the messages joined by newlines.

        Args:
          messages: mappings with the texts "role" and "content", and optionally other keys that the template reads.
          add_generation_prompt: whether to end with the text that precedes an answer of the model.
          **variables: variables of the template, such as `enable_thinking` of Qwen3. They have no effect without a
            template.

        Raises:
          ValueError: for an empty list of messages, a message without these texts, or a template that fails; in the
            last case, the error names the folder.

        Example:
          >>> import pathlib, tokenizers
          >>> from dps_jax import text
          >>> tokenizers.Tokenizer(tokenizers.models.BPE({"<end>": 0, "2": 1, "+": 2}, [])).save("tokenizer.json")
          >>> _ = pathlib.Path("tokenizer_config.json").write_text('{"eos_token": "<end>"}')
          >>> _ = pathlib.Path("chat_template.jinja").write_text("User: {{ messages[0].content }}{{ eos_token }}")
          >>> text.load_tokenizer(".").render([{"role": "user", "content": "2+2"}])
          'User: 2+2<end>'
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
        except Exception as error:  # a template is a foreign program and may raise anything
            raise ValueError(
                f"{self.folder}: expected a chat template that accepts the messages, got {type(error).__name__}: "
                f"{error!s:.300}; does the model accept their roles and order, and the variables "
                f"{sorted(variables)}?"
            ) from error

    def check_fits(self, vocab_size: int) -> None:
        """Checks that every token has a row in the embedding of a model.

        Args:
          vocab_size: number of rows of the embedding.

        Raises:
          ValueError: if there are more tokens than rows; the message names the folder.
        """
        size = _checks.check_int("vocab_size", vocab_size, at_least=1)
        if self.num_tokens > size:
            raise ValueError(
                f"{self.folder}: expected a tokenizer with ids below vocab_size = {size}, got {self.num_tokens} "
                "tokens; take the tokenizer that belongs to the model"
            )


def load_tokenizer(folder: os.PathLike[str] | str) -> Tokenizer:
    """Returns the tokenizer in a folder of Hugging Face's layout, as `transformers` and the Hub write it.

    The function reads tokenizer.json and tokenizer_config.json, and the following files if they exist:
    chat_template.jinja, which has precedence over a template in tokenizer_config.json; special_tokens_map.json; and
    generation_config.json or else config.json, for the tokens that end a completion.

    Args:
      folder: path of the folder, such as one from `hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B`.

    Raises:
      ValueError: if a file is missing or damaged, a special token is not in the vocabulary, no token ends a completion,
        or the chat template is not valid; the message names the file. Also without the extra `text`.

    Example:
      >>> import pathlib, tokenizers
      >>> from dps_jax import text
      >>> backend = tokenizers.Tokenizer(tokenizers.models.BPE({"<end>": 0, "2": 1, "+": 2, "=": 3, "4": 4}, []))
      >>> backend.decoder = tokenizers.decoders.Fuse()
      >>> backend.save("tokenizer.json")
      >>> _ = pathlib.Path("tokenizer_config.json").write_text('{"eos_token": "<end>"}')
      >>> tokenizer = text.load_tokenizer(".")
      >>> tokenizer.encode("2+2="), tokenizer.end_ids
      ([1, 2, 1, 3], (0,))
    """
    _checks.check_path("folder", folder)
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"folder: expected a folder with {files.TOKENIZER}, got {str(folder)!r}, which is not one; download the "
            "model first (hf download NAME --local-dir FOLDER)"
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
