"""Reads the files of a tokenizer in Hugging Face's layout; error messages name the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from dps_jax import _json

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
SPECIAL, GENERATION, MODEL = "special_tokens_map.json", "generation_config.json", "config.json"
REMEDY = "download the model's tokenizer again, or save it again"
# Roles of special tokens, which are names of fields in the files and of variables in chat templates.
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def import_tokenizers(folder: Path) -> ModuleType:
    """Returns the library that reads tokenizer.json."""
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            f"{folder}: expected `tokenizers` to be installed, which reads {TOKENIZER}, got none; install the extra "
            "`text`: pip install -e '.[text]'"
        ) from error
    return tokenizers


def import_chat(folder: Path | str) -> ModuleType:
    """Returns the module that renders chat templates."""
    try:
        from dps_jax.text import _chat
    except ImportError as error:
        raise ValueError(
            f"{folder}: expected jinja2 to be installed, which renders chat templates, got none; install the extra "
            "`text`: pip install -e '.[text]'"
        ) from error
    return _chat


def read_backend(path: Path) -> Any:
    """Returns the tokenizer in a file, without padding and truncation."""
    tokenizers = import_tokenizers(path.parent)
    if not path.exists():
        raise ValueError(
            f"{path}: expected the tokenizer in this file, got none; {REMEDY} "
            "(transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it)"
        )
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_bytes().decode())
    except Exception as error:  # the library raises plain exceptions
        raise ValueError(f"{path}: expected a tokenizer, got a damaged file ({error!s:.200}); {REMEDY}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the fields of tokenizer_config.json."""
    return _json.read_object(folder / CONFIG, "the settings of a tokenizer", REMEDY)


def special_tokens(folder: Path, config: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, str]:
    """Returns the texts of special tokens by their roles."""
    sources = [(folder / CONFIG, config)]
    if (folder / SPECIAL).exists():
        sources.append((folder / SPECIAL, _json.read_object(folder / SPECIAL, "special tokens", REMEDY)))
    found: dict[str, str] = {}
    for path, fields in sources:
        for name in _NAMES:
            value = fields.get(name)
            if value is None or name in found:
                continue
            text = value.get("content") if isinstance(value, Mapping) else value
            if not isinstance(text, str):
                raise ValueError(f"{path}: {name}: expected a token or null, got {value!r:.80}; {REMEDY}")
            if text not in ids:
                raise ValueError(f"{path}: {name}: expected a token of {TOKENIZER}, got {text!r:.80}; {REMEDY}")
            found[name] = text
    return found


def model_ids(folder: Path, num_tokens: int) -> tuple[Path, list[int], list[int]]:
    """Returns the model's file that contains token ids, the ids that end a completion, and the padding ids."""
    path = next((folder / name for name in (GENERATION, MODEL) if (folder / name).exists()), folder / GENERATION)
    fields = _json.read_object(path, "the settings of a model", REMEDY) if path.exists() else {}
    found = []
    for name in ("eos_token_id", "pad_token_id"):
        value = fields.get(name)
        # Some models from 2023 use -1 if they have no padding token.
        values = value if isinstance(value, list) else [] if value is None or value == -1 else [value]
        for token in values:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < num_tokens:
                raise ValueError(
                    f"{path}: {name}: expected an id in [0, {num_tokens}), a list of them or null, got {token!r:.80}; "
                    "does the file belong to the same model as the tokenizer?"
                )
        found.append(values)
    return path, *found


def chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Returns the chat template of a folder after a trial compilation; None if there is none."""
    path, source = folder / TEMPLATE, config.get("chat_template")
    if path.exists():
        try:
            source = path.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: expected a chat template in UTF-8, got {error}; {REMEDY}") from error
        label = str(path)
    else:
        label = f"{folder / CONFIG}: chat_template"
    if isinstance(source, list):
        entries = [entry for entry in source if isinstance(entry, Mapping)]
        named = {str(entry.get("name")): entry.get("template") for entry in entries}
        if "default" not in named:
            raise ValueError(
                f"{label}: expected a template named 'default', got {', '.join(named) or 'none'}; put the template "
                f"into {TEMPLATE}"
            )
        source = named["default"]
    if source is None:
        return None
    if not isinstance(source, str):
        raise ValueError(f"{label}: expected a template, a list of named ones or null, got {source!r:.80}; {REMEDY}")
    chat = import_chat(folder)
    try:
        chat.compile_template(source)
    except Exception as error:  # errors of jinja2, or of Python in constant expressions
        raise ValueError(f"{label}: expected a Jinja template, got an error ({error!s:.200}); {REMEDY}") from error
    return source
