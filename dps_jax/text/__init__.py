"""Text for pretrained models: tokenizers with chat templates, questions from data files, and prompts in buckets.

docs/text.md shows how these parts work together. Tokenizers need the extra `text`.
"""

from __future__ import annotations

from dps_jax.text._buckets import bucket_lengths, bucket_of, pad_left
from dps_jax.text._prompts import Prompts, encode_questions
from dps_jax.text._questions import Question, read_questions
from dps_jax.text._stops import check_stops, end_of, stop_ids
from dps_jax.text._tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "Prompts",
    "Question",
    "Tokenizer",
    "bucket_lengths",
    "bucket_of",
    "check_stops",
    "encode_questions",
    "end_of",
    "load_tokenizer",
    "pad_left",
    "read_questions",
    "stop_ids",
]

# Pickles name the public module, so that they outlive changes of the private ones.
Tokenizer.__module__ = __name__
