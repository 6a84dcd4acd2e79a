"""What a run remembers beside its arrays, as JSON values: counts, results of evaluations, an unfinished record."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass
class Progress:
    """Kept with every checkpoint.

    Attributes:
      totals: rollouts, completion_tokens and skipped_steps so far.
      seconds: of all rounds.
      refit_seconds: of all refits.
      num_silent: rounds in a row without an informative group.
      num_skipped: rounds in a row with a step that was not finite.
      accuracies: by rounds done; None where no completion had a score.
      evaluation: results of the last one.
      answers_before: some held-out problems with answers of the policy before training.
      best: `round` and `checksum` of the file of the best policy so far; None before the first evaluation.
      changes: options that were changed when the run was resumed.
      record: of the last round, while its evaluation is missing; not in the log yet.
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
        """Returns all of it as JSON values; numbers that are not finite are None."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return values | {"accuracies": {str(index): value for index, value in self.accuracies.items()}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        """Returns what `to_json` gave."""
        fields: dict[str, Any] = dict(values)
        fields["accuracies"] = {int(index): value for index, value in values["accuracies"].items()}
        return cls(**fields)

    def is_best(self, round_index: int) -> bool:
        """Returns whether no evaluation before that of a round was better."""
        accuracy = self.accuracies.get(round_index)
        earlier = [value for index, value in self.accuracies.items() if index < round_index and value is not None]
        return accuracy is not None and all(accuracy >= value for value in earlier)
