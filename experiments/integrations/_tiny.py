"""A tiny model, its tokenizer and the sums of two digits, made on the spot for the examples and their tests."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM


def make_tokenizer(largest: int = 18) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of the numbers up to the largest, "+" and "=", one token each."""
    words = ["<pad>", "<eos>", "+", "=", *map(str, range(largest + 1))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        model_input_names=["input_ids", "attention_mask"],
    )


def make_model(tokenizer: Any, width: int = 32, seed: int = 0) -> Qwen2ForCausalLM:
    """Returns a Qwen2 model of two layers with random weights."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def make_rows() -> Dataset:
    """Returns the hundred sums of two digits in order: row 34 is "3 + 4 =" with the answer "7"."""
    sums = [(first, second) for first in range(10) for second in range(10)]
    return Dataset.from_list(
        [{"prompt": f"{first} + {second} =", "answer": str(first + second)} for first, second in sums]
    )


def accuracy(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """Returns 1 for completions that begin with the answer, 0 for others: a reward function of TRL."""
    return [float(text.split()[:1] == [right]) for text, right in zip(completions, answer, strict=True)]
