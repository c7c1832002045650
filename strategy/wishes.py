"""What the owner of a cluster may wish for, in words that its settings have.

Every command reads settings: nothing here imports what calculates.
"""

from enum import StrEnum


class Mode(StrEnum):
    """USE_DISTRIBUTED_INFERENCE."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Objective(StrEnum):
    """What is to be least: the time of the whole answer, that to its first token, or that of all answers that are under way."""

    TOTAL = "total"
    TTFT = "ttft"
    THROUGHPUT = "throughput"
