"""The part of the state of a run that is of JSON types: counts, results of evaluations, an unfinished record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# After this number of rounds in a row without anything to learn from, a warning is reported.
_SILENT_ROUNDS = 10


@dataclasses.dataclass
class Progress:
    """The progress of a run, which is stored with every checkpoint.

    Attributes:
      totals: numbers of rollouts, completion_tokens and skipped_steps so far.
      seconds: duration of all rounds.
      refit_seconds: duration of all refits.
      num_silent: number of rounds in a row, up to the last, without an informative group or with a gradient of zero.
      num_skipped: number of rounds in a row, up to the last, with a step that was not finite.
      accuracies: test accuracy by the number of rounds done; None if no completion had a score.
      evaluation: results of the last evaluation.
      answers_before: some held-out problems with answers of the policy before training.
      best: `round` and `checksum` of the file of the best policy so far; None before the first evaluation.
      changes: options that were changed when the run was resumed.
      record: record of the last round, while its evaluation is missing and it is not in the log yet.
    """

    totals: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"rollouts": 0, "completion_tokens": 0, "skipped_steps": 0}
    )
    seconds: float = 0.0
    refit_seconds: float = 0.0
    num_silent: int = 0
    num_skipped: int = 0
    accuracies: dict[int, float | None] = dataclasses.field(default_factory=dict)
    evaluation: dict[str, Any] = dataclasses.field(default_factory=dict)
    answers_before: list[Any] = dataclasses.field(default_factory=list)
    best: dict[str, int] | None = None
    changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    record: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the progress as JSON values; numbers that are not finite are None."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return values | {"accuracies": {str(index): value for index, value in self.accuracies.items()}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        """Returns the progress from the values that `to_json` returned."""
        fields: dict[str, Any] = dict(values)
        fields["accuracies"] = {int(index): value for index, value in values["accuracies"].items()}
        return cls(**fields)

    def add_round(self, record: Mapping[str, Any], *, is_silent: bool) -> None:
        """Adds the record of a round; `is_silent` if it had no informative group or a gradient of zero."""
        self.totals = {name: total + record[name] for name, total in self.totals.items()}
        self.num_silent = self.num_silent + 1 if is_silent else 0
        self.num_skipped = self.num_skipped + 1 if record["skipped_steps"] else 0

    def warning(self, accuracy: float) -> str | None:
        """Returns a warning in the tenth silent round in a row, and None in all others."""
        if self.num_silent != _SILENT_ROUNDS:
            return None
        solved = "always" if accuracy > 0.5 else "never"
        return (
            f"warning: no prompt was partially solved in the last {_SILENT_ROUNDS} rounds (they are {solved} "
            "solved): there is nothing to learn from. Start from a better model (experiments/pretrain.py), or "
            f"choose {'harder' if solved == 'always' else 'easier'} problems or a larger --rollout.group-size"
        )

    def refusal(self, record: Mapping[str, Any], saved_round: int) -> str:
        """Returns the message for a run that stops because its steps are not finite."""
        return (
            f"round {record['round']}: expected finite losses, gradients and steps, got others in the last "
            f"{self.num_skipped} rounds, the latest with loss {record['loss']} and gradient norm "
            f"{record['grad_norm']}; the checkpoint after {saved_round} rounds is kept. Continue from it with a lower "
            "--learner.learning-rate, which may change when a run is resumed, or allow more such rounds with "
            "--learner.max-skipped"
        )

    def is_best(self, round_index: int) -> bool:
        """Returns whether the test accuracy after a number of rounds is at least as high as all earlier ones."""
        accuracy = self.accuracies.get(round_index)
        earlier = [value for index, value in self.accuracies.items() if index < round_index and value is not None]
        return accuracy is not None and all(accuracy >= value for value in earlier)
