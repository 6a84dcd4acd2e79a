"""The config of a run on a data file: nested frozen dataclasses, which tyro turns into a command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dps_jax import _checks, text
from dps_jax.models import _attention, _fused_attention
from dps_jax.models._computing import COMPUTE_DTYPES
from dps_jax.selectors import _option_text
from dps_jax.training._run_config import LearnerConfig, RolloutConfig, RunConfig
from dps_jax.training._selector_config import SelectorConfig, named
from dps_jax.training._text_policy import weight_files

_FEATURES = ("length", "source", "log-prob")


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    r"""Which questions are read from the data files, and how they become prompts.

    Example:
      >>> from dps_jax import training
      >>> prompts = training.PromptsConfig(
      ...     columns=("prompt=question", "answer=solution"), template="{prompt}\nAnswer with a number.", num_test=256)
      >>> config = training.TextConfig(model="Qwen2.5-0.5B-Instruct", data="questions.jsonl", prompts=prompts)
    """

    test_data: Path | None = None
    """Data file of held-out questions; None holds out --prompts.num-test questions of the training file, the same for
    all seeds."""
    num_test: int = 128
    """Largest number of held-out questions of an evaluation; the first ones of --prompts.test-data are taken."""
    num_train: int | None = None
    """Largest number of training questions, N; the first ones of the file are taken. None takes all."""
    columns: tuple[str, ...] = ()
    """Names of the columns of the data file where they differ from the usual ones, as words
    prompt=question answer=solution source=origin group=level. Dots lead into nested objects."""
    template: str = "{prompt}"
    """Text of the user message, with {prompt} for the question and optionally {reward_rules} for the rules of the
    grader."""
    chat: bool = True
    """Render prompts with the chat template of the model. With --prompts.no-chat, a prompt is its plain text, as for a
    base model."""
    chat_options: tuple[str, ...] = ()
    """Variables for the chat template, as words NAME=VALUE, such as enable_thinking=False for Qwen3."""
    system: str | None = None
    """System message, which may contain {reward_rules}; None is no system message."""
    max_length: int = 512
    """Largest length of a prompt in tokens."""
    too_long: Literal["drop", "error"] = "drop"
    """What to do with longer prompts: "drop" leaves them out and reports their number, "error" stops."""
    num_buckets: int = 4
    """Largest number of lengths that prompts are padded to; a program is compiled for each length."""
    features: tuple[str, ...] = ("length", "source")
    """Features of prompts for methods that use features: "length" (log of the number of tokens), "source" (the column
    data_source) and "log-prob" (mean log-prob of the prompt's tokens under the policy before training, which takes a
    pass over all prompts)."""
    feature_file: Path | None = None
    """A .npy file with an array [rows of the data file, D] of further features, such as embeddings of the prompts."""

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
        """Returns the variables for the chat template."""
        with named("prompts"):
            return _option_text.parse(self.chat_options, "chat_options")

    def column_names(self) -> dict[str, str]:
        """Returns the names of the columns in the file, by their usual names."""
        with named("prompts"):
            return {name: str(value) for name, value in _option_text.parse(self.columns, "columns").items()}


@dataclasses.dataclass(frozen=True)
class GraderConfig:
    """How completions are graded.

    Example:
      >>> from dps_jax import training
      >>> grader = training.GraderConfig(name="math-verify", time_limit_s=2.0, num_processes=16)
      >>> config = training.TextConfig(model="Qwen2.5-0.5B-Instruct", data="gsm8k.parquet", grader=grader)
    """

    name: str = "numeric"
    """Name of the grader: "exact", "numeric", "math-verify", "countdown", "reasoning-gym" or "reasoning-gym:TASK"; or
    the import path of your own function, such as "my_module:grade"."""
    options: tuple[str, ...] = ()
    """Options of the grader, as words NAME=VALUE, where the value is a Python or JSON literal or plain text."""
    threshold: float = 1.0
    """Smallest reward whose completion counts as correct, for a grader that returns numbers."""
    time_limit_s: float = 5.0
    """Time limit for one completion, in seconds; a completion that takes longer is graded as wrong."""
    batch_limit_s: float = 60.0
    """Time limit for all completions that are graded together, in seconds; those not graded in time count as wrong."""
    num_processes: int | None = None
    """Number of grading processes; None is one per core, at most 8."""

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
    """How the completions of a round are sampled.

    Example:
      >>> from dps_jax import training
      >>> rollout = training.TextRolloutConfig(batch_size=16, completion_length=512, stops=("</answer>",), chunk_size=8)
      >>> config = training.TextConfig(model="Qwen2.5-0.5B-Instruct", data="gsm8k.parquet", rollout=rollout)
    """

    completion_length: int = 256
    """Largest length of a completion in tokens, T; longer ones are cut off."""
    top_k: int | None = None
    """Number of most likely tokens to sample from, which makes the update slightly off-policy; None is all tokens."""
    stops: tuple[str, ...] = ()
    """Texts that end a completion, in addition to the end tokens that the files of the model name."""
    chunk_size: int | None = None
    """Number of prompts whose completions are sampled together; one chunk is graded while the next is sampled. None is
    all prompts of a round."""

    def __post_init__(self):
        super().__post_init__()
        _checks.check_int("rollout.completion_length", self.completion_length, at_least=1)
        for field in ("top_k", "chunk_size"):
            if getattr(self, field) is not None:
                _checks.check_int(f"rollout.{field}", getattr(self, field), at_least=1)
        text.check_stops(self.stops)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(RunConfig):
    """The config of a training run of a pretrained language model on the questions of a data file, for `train`.

    A run that was interrupted continues when `train` gets the same config again, and on a CPU ends as it would have
    ended without the interruption, unless a time limit of the grader changes a grade. In between, its folder, the model
    and the data may be moved, and these fields may be changed: `num_rounds`, `eval_every`, `checkpoint_every`,
    `keep_last`, `learner.learning_rate`, `learner.max_skipped`, `attention` and `mesh`. Changes are recorded in
    config.json, except those of `num_rounds` and of the fields of `mesh` that describe the processes.

    Example:
      >>> from dps_jax import training
      >>> config = training.TextConfig(
      ...     model="Qwen2.5-0.5B-Instruct", data="gsm8k.parquet", dtype="bfloat16",
      ...     grader=training.GraderConfig(name="math-verify"))
      >>> config.learner.learning_rate  # the default for pretrained models; `training.train(config)` starts the run
      1e-05
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL_DIR")]
    """Folder of a Qwen2, Qwen3 or Llama model as downloaded from the Hugging Face Hub: config.json, .safetensors files
    and tokenizer.json."""
    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Data file of questions with answers: .parquet or .jsonl, with the columns of verl, or with prompt, answer and
    optionally group and data_source."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype that the model computes in; the trained weights are float32 in either case."""
    attention: str = "blockwise"
    """How attention is computed in the update: "plain", "blockwise" (less memory), or a fused kernel on one device:
    "cudnn" on an NVIDIA GPU (with --dtype bfloat16) or "splash" on a TPU."""
    eval_temperature: float = 1.0
    """Sampling temperature in evaluations, which sample from all tokens; 0 always takes the most likely token."""
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
                f"rollout.chunk_size: expected None or a multiple of {self.mesh.words()}, got {chunk_size}; use "
                "another chunk size or fewer devices"
            )
        _checks.check_choice("dtype", self.dtype, COMPUTE_DTYPES)
        _checks.check_choice("attention", self.attention, _attention.ATTENTIONS)
        _fused_attention.check_fits(self.attention, self.dtype, self.mesh.size)
        _checks.check_number("eval_temperature", self.eval_temperature, at_least=0, hint="0 is greedy")

    def files(self) -> list[Path]:
        """Returns the files that the initial policy is read from."""
        return weight_files(Path(self.model))
