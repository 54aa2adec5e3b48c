"""Every error that Headwater raises on purpose. The type decides what happens next.

    HeadwaterError
    ├── ConfigurationError         stop at start, one line, exit code 2
    ├── InvalidEventError          the record goes to the dead-letter topic, the stream moves on
    ├── TransientError             try again with backoff
    ├── AbandonedError             left to the partition's next owner, who does it from the log
    ├── OvertakenError             begin again from the version that came before ours
    ├── DamagedVersionError        the registry refuses the version and serves the one before
    ├── DamagedSnapshotError       state is taken from an older snapshot, or from the log
    ├── SnapshotCancelledError     the snapshot under way is dropped, the one before it stands
    ├── HoldoutMismatchError       a bug: the gate was given rows that do not pair
    ├── LossSpikeError             training may have diverged: undo the round, teach it again
    └── NonFiniteError             training diverged: go back to the last finite weights

Anything else is a bug: it ends the process loudly, and Kafka still holds the events.
Messages say what the user can do.
"""

import enum


class HeadwaterError(Exception):
    """The root of the tree."""


class ConfigurationError(HeadwaterError):
    """Something that the operator set, named or prepared is wrong."""


class DeadLetterReason(enum.StrEnum):
    """Why a record could not become an event; a header and a metric label."""

    MALFORMED = "malformed"  # not JSON, not UTF-8, not an object
    INVALID = "invalid"  # a field is missing or has the wrong type or value
    UNKNOWN_KIND = "unknown_kind"  # the event kind is not in the settings
    OVERSIZED = "oversized"
    FUTURE = "future"  # dated further ahead than the clock may be wrong


class InvalidEventError(HeadwaterError):
    """A record that cannot become an event."""

    def __init__(self, reason: DeadLetterReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class TransientError(HeadwaterError):
    """Worth trying again: the other side was away or too slow."""


class AbandonedError(HeadwaterError):
    """What was under way for a partition will not be done here, and does not count as done."""


class OvertakenError(HeadwaterError):
    """Someone else has published a version meanwhile."""


class DamagedVersionError(HeadwaterError):
    """A version whose manifest or files are missing, truncated or altered."""


class DamagedSnapshotError(HeadwaterError):
    """A state snapshot whose manifest or parts are missing, truncated or altered."""


class SnapshotCancelledError(HeadwaterError):
    """The snapshot under way is not wanted any more."""


class HoldoutMismatchError(HeadwaterError):
    """Champion and challenger were not scored on the same holdout rows."""


class NonFiniteError(HeadwaterError):
    """A loss, gradient or weight is NaN or infinite."""


class LossSpikeError(HeadwaterError):
    """A round's loss is far above the usual."""
