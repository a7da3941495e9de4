"""The error tree. A message says what was expected, what came, where, and what to do.

Every class survives pickling (and so a trip through Ray): one positional message, everything else an attribute.
"""

from typing import Any, ClassVar


class RaylogError(Exception):
    """Base of all errors of raylog.

    `exit_status` is what the command line and the jobs exit with; `is_retryable` says whether the same call may
    succeed later without anybody changing anything. Keyword arguments become attributes (`shard_id`, `chunk`, …).
    """

    exit_status: ClassVar[int] = 1
    is_retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.__dict__.update(details)


class UsageError(RaylogError):
    """The caller's mistake: a bad name, argument, key or configuration."""

    exit_status = 2


class SourceError(UsageError):
    """The source of a `put` is missing, unreadable, malformed, or changed while it was read."""


class NotFound(RaylogError):
    """The artifact, version, shard or node named is not there."""


class Conflict(RaylogError):
    """Another writer was first; nothing of this call is visible."""


class DamagedData(RaylogError):
    """Stored or received bytes are not the bytes that were sealed."""

    exit_status = 3


class NotPermitted(RaylogError):
    """The caller did not prove who it is, or may not do this."""

    exit_status = 4


class PeerFault(RaylogError):
    """A peer broke the protocol. The same work may succeed with another peer."""

    is_retryable = True


class Unavailable(RaylogError):
    """Something needed does not answer, or not in time."""

    is_retryable = True


class Unsatisfiable(RaylogError):
    """The nodes that there are cannot give what was asked for; asking again changes nothing."""


class DeadlineExceeded(Unavailable):
    """A wait reached its deadline."""


class NoSpace(Unavailable):
    """A tier cannot take the bytes that were to be stored."""


class Cancelled(RaylogError):
    """The caller took its call back."""
