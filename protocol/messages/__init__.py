"""Every message between processes, a file for each conversation. Headers are frozen structs; tensors travel beside them."""

from protocol.messages.generating import (
    Cancel,
    ForgetConversation,
    Generate,
    PrefillProgress,
    Reused,
    SequenceFailed,
    Tokens,
    Update,
)
from protocol.messages.joining import Heartbeat, Join, Rejected, Shutdown, Welcome
from protocol.messages.loading import (
    Inspected,
    InspectModel,
    KeptPrefix,
    KnownPrefix,
    Loaded,
    LoadFailed,
    LoadProgress,
    LoadStage,
    StagePlan,
)
from protocol.messages.message import Message
from protocol.messages.stages import (
    CloseSequence,
    DropPrefix,
    KeepPrefix,
    OpenSequence,
    Row,
    Sampled,
    Step,
    StepFailed,
)

__all__ = [
    "Cancel",
    "CloseSequence",
    "DropPrefix",
    "ForgetConversation",
    "Generate",
    "Heartbeat",
    "InspectModel",
    "Inspected",
    "Join",
    "KeepPrefix",
    "KeptPrefix",
    "KnownPrefix",
    "LoadFailed",
    "LoadProgress",
    "LoadStage",
    "Loaded",
    "Message",
    "OpenSequence",
    "PrefillProgress",
    "Rejected",
    "Reused",
    "Row",
    "Sampled",
    "SequenceFailed",
    "Shutdown",
    "StagePlan",
    "Step",
    "StepFailed",
    "Tokens",
    "Update",
    "Welcome",
]
