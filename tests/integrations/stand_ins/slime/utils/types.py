import dataclasses
import enum


@dataclasses.dataclass
class Sample:
    class Status(enum.Enum):
        PENDING = "pending"
        COMPLETED = "completed"
        ABORTED = "aborted"

    prompt: str = ""
    label: str | None = None
    metadata: dict = dataclasses.field(default_factory=dict)
    group_index: int | None = None
    index: int | None = None
    response: str = ""
    reward: object = None
    status: Status = Status.PENDING
