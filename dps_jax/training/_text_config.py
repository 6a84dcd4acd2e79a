"""What a run on a data file is made of: nested frozen dataclasses, which tyro turns into a command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dps_jax import _checks, models, text
from dps_jax.models import _attention, _fused_attention
from dps_jax.selectors import _option_text
from dps_jax.training._run_config import LearnerConfig, RolloutConfig, RunConfig
from dps_jax.training._selector_config import SelectorConfig, named
from dps_jax.training._text_policy import weight_files

_FEATURES = ("length", "source", "log-prob")


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    """What is read from the data files, and how it is put to the model."""

    test_data: Path | None = None
    """Held-out questions; None takes num_test of the training file, the same for all seeds."""
    num_test: int = 128
    """Held-out questions of an evaluation, at most; those of test_data from its beginning."""
    num_train: int | None = None
    """N, the most questions to train on, from the beginning; None is all."""
    columns: tuple[str, ...] = ()
    """Where the file names its columns otherwise: prompt=question answer=solution source=origin group=level. Dots lead
    into objects."""
    template: str = "{prompt}"
    """Of the message of the user, with {prompt} and perhaps {reward_rules}, what the grader says of itself."""
    chat: bool = True
    """Put prompts to the model by its chat template; with --prompts.no-chat the text of a prompt is all it sees, as of
    a base model."""
    chat_options: tuple[str, ...] = ()
    """What the chat template reads besides, name=value, such as enable_thinking=False of Qwen3."""
    system: str | None = None
    """A system message in front; it may have {reward_rules}."""
    max_length: int = 512
    """Of a prompt, in tokens."""
    too_long: Literal["drop", "error"] = "drop"
    """Longer prompts are dropped and counted, or an error."""
    num_buckets: int = 4
    """The most lengths that prompts are padded to; a program is compiled for each."""
    features: tuple[str, ...] = ("length", "source")
    """What a selector with features sees of a prompt: "length" (log of its tokens), "source" (data_source) and
    "log-prob" (mean log-prob of its tokens under the policy before training, which takes a pass over all prompts)."""
    feature_file: Path | None = None
    """A .npy file, [rows of the data file, D], with further features, such as embeddings of the prompts."""

    def __post_init__(self):
        for field in ("num_test", "max_length", "num_buckets"):
            _checks.check_int(f"prompts.{field}", getattr(self, field), at_least=1)
        if self.num_train is not None:
            _checks.check_int("prompts.num_train", self.num_train, at_least=1)
        _checks.check_bool("prompts.chat", self.chat)
        _checks.check_choice("prompts.too_long", self.too_long, ("drop", "error"))
        for feature in self.features:
            _checks.check_choice("prompts.features", feature, _FEATURES)
        for field in ("test_data", "feature_file"):
            if getattr(self, field) is not None:
                _checks.check_path(f"prompts.{field}", getattr(self, field))
        self.column_names()
        self.chat_variables()

    def chat_variables(self) -> dict[str, Any]:
        """Returns what the chat template reads besides."""
        with named("prompts"):
            return _option_text.parse(self.chat_options, "chat_options")

    def column_names(self) -> dict[str, str]:
        """Returns the columns of the file by their names here."""
        with named("prompts"):
            return {name: str(value) for name, value in _option_text.parse(self.columns, "columns").items()}


@dataclasses.dataclass(frozen=True)
class GraderConfig:
    """How completions are graded."""

    name: str = "numeric"
    """"exact", "numeric", "math-verify", "countdown", "reasoning-gym", "reasoning-gym:TASK", or the import path of a
    function of your own, "my_module:grade"."""
    options: tuple[str, ...] = ()
    """Of the grader, name=value with the value as JSON or a text."""
    threshold: float = 1.0
    """The least reward that counts as correct, of a grader that returns numbers."""
    time_limit_s: float = 5.0
    """Of one completion; one that takes longer is wrong."""
    batch_limit_s: float = 60.0
    """Of all completions of a chunk; those that are open then are wrong."""
    num_processes: int | None = None
    """Processes that grade; None is one per core, at most 8."""

    def __post_init__(self):
        _checks.check_number("grader.threshold", self.threshold)
        _checks.check_number("grader.time_limit_s", self.time_limit_s, above=0)
        _checks.check_number("grader.batch_limit_s", self.batch_limit_s, above=0)
        if self.num_processes is not None:
            _checks.check_int("grader.num_processes", self.num_processes, at_least=1)
        self.option_values()

    def option_values(self) -> dict[str, Any]:
        """Returns the options of the grader."""
        with named("grader"):
            return _option_text.parse(self.options)


@dataclasses.dataclass(frozen=True)
class TextRolloutConfig(RolloutConfig):
    """How a round's completions are sampled."""

    completion_length: int = 256
    """T, tokens after which a completion is cut off."""
    top_k: int | None = None
    """Sample from this many likeliest tokens; below the vocabulary the update is slightly off-policy."""
    stops: tuple[str, ...] = ()
    """Texts that end a completion, besides the tokens that the model's files name."""
    chunk_size: int | None = None
    """Prompts that are sampled together; one chunk is graded while the next is sampled. None is all of a round."""

    def __post_init__(self):
        super().__post_init__()
        _checks.check_int("rollout.completion_length", self.completion_length, at_least=1)
        for field in ("top_k", "chunk_size"):
            if getattr(self, field) is not None:
                _checks.check_int(f"rollout.{field}", getattr(self, field), at_least=1)
        text.check_stops(self.stops)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(RunConfig):
    """A training run of a pretrained model on questions in a data file.

    Killing it and running the same command again continues to the same end. When a run is resumed its folder, the
    model and the data may have moved and num_rounds may have another value. So may eval_every, checkpoint_every,
    keep_last, learner.learning_rate, learner.max_skipped, attention and the mesh, whose changes are recorded in
    config.json.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL_DIR")]
    """Folder of a Qwen2, Qwen3 or Llama model, as on the Hugging Face Hub: config.json, .safetensors, tokenizer."""
    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Questions with answers: .parquet or .jsonl with the columns of verl, or prompt, answer, group, data_source."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in; the weights that are trained are float32 either way."""
    attention: str = "blockwise"
    """How attention is computed in the update: "plain", "blockwise", or by fused kernels on one device, "cudnn" on an
    NVIDIA GPU (with --dtype bfloat16) and "splash" on a TPU."""
    eval_temperature: float = 1.0
    """Of sampling in evaluations; 0 takes the likeliest token every time."""
    prompts: PromptsConfig = PromptsConfig()
    grader: GraderConfig = GraderConfig()
    selector: SelectorConfig = dataclasses.field(default_factory=SelectorConfig)
    rollout: TextRolloutConfig = TextRolloutConfig()
    learner: LearnerConfig = dataclasses.field(default_factory=lambda: LearnerConfig(learning_rate=1e-5))

    def __post_init__(self):
        super().__post_init__()
        for field, kind in (
            ("prompts", PromptsConfig),
            ("grader", GraderConfig),
            ("rollout", TextRolloutConfig),
        ):
            _checks.check_instance(field, getattr(self, field), kind)
        for field in ("model", "data"):
            _checks.check_path(field, getattr(self, field))
        chunk_size = self.rollout.chunk_size
        if chunk_size is not None and chunk_size % self.mesh.size:
            raise ValueError(
                f"rollout.chunk_size: expected None or a multiple of {self.mesh.words()}, got {chunk_size}; take "
                "another or fewer devices"
            )
        _checks.check_choice("dtype", self.dtype, models.COMPUTE_DTYPES)
        _checks.check_choice("attention", self.attention, _attention.ATTENTIONS)
        _fused_attention.check_fits(self.attention, self.dtype, self.mesh.size)
        _checks.check_number("eval_temperature", self.eval_temperature, at_least=0, hint="0 is greedy")

    def files(self) -> list[Path]:
        """Returns the files that the policy before training is read from."""
        return weight_files(Path(self.model))
