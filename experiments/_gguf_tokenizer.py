"""Converts byte-level BPE tokenizers in GGUF files to tokenizer.json and the other tokenizer files of transformers.

Source: the specification of GGUF (ggml, docs/gguf.md) for types of tokens, and llama.cpp for the pre-tokenizer
"smollm", which separates all digits and then splits words as GPT-2 does.
"""

from __future__ import annotations

from typing import Any

import _gguf

_PREFIX = "tokenizer.ggml"
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_ROLES = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id", "unk": "unknown_token_id"}
# Roles of tokens that end a completion: end of text, of a turn and of a message.
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def import_tokenizers() -> Any:
    """Returns the package tokenizers.

    Raises:
      ValueError: if it is not installed; the message has the command that installs it.
    """
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
    except ImportError as error:
        raise ValueError(
            "tokenizers: expected this package to be installed, which writes tokenizer.json, got none; install the "
            "extra `text`: pip install -e '.[text]'"
        ) from error
    return tokenizers


def tokenizer_json(file: _gguf.File) -> str:
    """Returns the content of tokenizer.json.

    Raises:
      ValueError: for another kind of tokenizer, tokens that are not distinct, or merges of unknown tokens; the message
        names the file and the value.
    """
    tokenizers = import_tokenizers()
    _check_kind(file)
    tokens, kinds = tokens_of(file)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    model = tokenizers.models.BPE(vocab=vocabulary, merges=_merges(file, vocabulary))
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    added = lambda kind: [
        tokenizers.AddedToken(token, normalized=False, special=kind == _CONTROL)
        for token, its in zip(tokens, kinds, strict=True)
        if its == kind
    ]
    tokenizer.add_special_tokens(added(_CONTROL))
    tokenizer.add_tokens(added(_USER_DEFINED))
    return tokenizer.to_str()


def tokens_of(file: _gguf.File) -> tuple[list[str], list[int]]:
    """Returns the tokens and their GGUF types.

    Raises:
      ValueError: for a token that occurs twice, or a type that byte-level BPE does not have; the message names the file
        and the position.
    """
    tokens, kinds = (file.value(f"{_PREFIX}.{name}", "list") for name in ("tokens", "token_type"))
    if len(kinds) != len(tokens):
        raise file.error(
            f"{_PREFIX}.token_type", f"expected {len(tokens)} types, one per token, got {len(kinds)}; {_gguf.REMEDY}"
        )
    seen: set[str] = set()
    for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if token in seen:
            raise file.error(f"{_PREFIX}.tokens", f"expected distinct tokens, got {token!r} again at {index}")
        if kind not in (_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED):
            raise file.error(
                f"{_PREFIX}.token_type",
                f"expected {_NORMAL} (normal), {_CONTROL} (control), {_USER_DEFINED} (user defined) or {_UNUSED} "
                f"(unused), got {kind!r} at {index}; {_gguf.REMEDY}",
            )
        seen.add(token)
    return tokens, kinds


def tokenizer_config(file: _gguf.File) -> dict[str, Any]:
    """Returns the content of tokenizer_config.json: the chat template, and the special tokens with their roles.

    Raises:
      ValueError: for a token id out of range, or a template that is not a text; the message names the file.
    """
    tokens = file.value(f"{_PREFIX}.tokens", "list")
    fields: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": _gguf.context_length(file),
    }
    fields |= {f"{role}_token": tokens[index] for role, index in role_ids(file).items()}
    template = file.value("tokenizer.chat_template", "text", "")
    return fields | ({"chat_template": template} if template else {})


def role_ids(file: _gguf.File) -> dict[str, int]:
    """Returns the ids of the tokens bos, eos, pad and unk, as far as the file has them.

    Raises:
      ValueError: for an id out of range; the message names the file.
    """
    found = {role: _token_id(file, f"{_PREFIX}.{name}") for role, name in _ROLES.items()}
    return {role: index for role, index in found.items() if index is not None}


def generation_config(file: _gguf.File) -> dict[str, Any]:
    """Returns the content of generation_config.json: ids of the tokens that end a completion, begin a text, and pad.

    Raises:
      ValueError: for an id out of range, or if no token ends a completion; the message names the file.
    """
    found = (_token_id(file, f"{_PREFIX}.{name}") for name in _ENDS)
    ends = list(dict.fromkeys(index for index in found if index is not None))
    if not ends:
        raise file.error(
            f"{_PREFIX}.{_ENDS[0]}", f"expected the token that ends a completion, got none; {_gguf.REMEDY}"
        )
    ids = role_ids(file)
    fields = {f"{role}_token_id": ids[role] for role in ("bos", "pad") if role in ids}
    return {"eos_token_id": ends[0] if len(ends) == 1 else ends} | fields


def _token_id(file: _gguf.File, name: str) -> int | None:
    """Returns the id of the token with a role; None if the file has no such token."""
    if name not in file.metadata:
        return None
    index, num_tokens = file.value(name, "integer"), len(file.value(f"{_PREFIX}.tokens", "list"))
    if not 0 <= index < num_tokens:
        raise file.error(name, f"expected an id in [0, {num_tokens}), got {index}; {_gguf.REMEDY}")
    return index


def _check_kind(file: _gguf.File) -> None:
    """Raises a ValueError for a tokenizer of another kind than that of SmolLM."""
    for name, expected in (("model", "gpt2"), ("pre", "smollm")):
        found = file.value(f"{_PREFIX}.{name}", "text")
        if found != expected:
            raise file.error(f"{_PREFIX}.{name}", f"expected {expected!r}, got {found!r}; others are not supported")
    for name in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        if file.value(f"{_PREFIX}.{name}", "flag", False):
            raise file.error(f"{_PREFIX}.{name}", "expected false, got true; it is not supported")


def _merges(file: _gguf.File, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Returns the pairs of tokens to merge, in order of priority."""
    found = []
    for index, merge in enumerate(file.value(f"{_PREFIX}.merges", "list")):
        parts = str(merge).split(" ")
        if len(parts) != 2 or not {*parts, "".join(parts)} <= vocabulary.keys():
            raise file.error(
                f"{_PREFIX}.merges",
                f"expected two tokens that make a third one, got {merge!r:.60} at {index}; {_gguf.REMEDY}",
            )
        found.append((parts[0], parts[1]))
    return found
