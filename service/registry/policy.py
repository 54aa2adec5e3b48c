"""Version policy: which version serves, and which may be removed.

Both only look at numbers: they read nothing and remove nothing.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from service.domain import Version


def version_to_serve(
    versions: Sequence[Version], refused: AbstractSet[Version], pin: Version | None
) -> Version | None:
    """The pin if it exists and is not refused, else the newest that is not refused.

    `refused` are versions found damaged. None when no version is left.
    """
    usable = [version for version in versions if version not in refused]
    if pin in usable:
        return pin
    return max(usable, default=None)


def versions_to_remove(
    versions: Sequence[Version], *, keep: int, pin: Version | None, newest_intact: Version | None
) -> list[Version]:
    """All but the newest `keep`, the pin and the newest intact one, oldest first.

    The newest `keep` may all be damaged: then the one that serves is older than they are.
    Without an intact one nothing is removed, since a person may still want to repair one.
    """
    if newest_intact is None:
        return []
    kept = {pin, newest_intact, *sorted(versions)[-keep:]}
    return [version for version in sorted(versions) if version not in kept]
