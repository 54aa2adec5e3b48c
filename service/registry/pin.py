"""The pin: the version that an operator has named to serve, whatever is newer."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from service.domain import Version
from service.errors import ConfigurationError
from service.storage.files import make_folder, patiently, replace_synced, sync_folder


class _Pin(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Version


def read_pin(file: Path) -> Version | None:
    """The pinned version; None when nothing is pinned.

    Raises `ConfigurationError` for what is no pin: nobody knows then what the operator asked for,
    and the newest may be what it was pinned against; `OSError` where it cannot be read, for some
    seconds, which is a matter of the whole storage root.
    """
    try:
        return _Pin.model_validate_json(patiently(file.read_bytes)).version
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        reason = "is a folder"
    except ValidationError:
        reason = "is damaged"
    raise ConfigurationError(
        f"{file} {reason}: pin a version again with `headwater registry pin`, or `unpin`"
    )


def write_pin(file: Path, version: Version | None) -> None:
    """Sets the pin, or removes it, durably and in one step."""
    if version is not None:
        make_folder(file.parent)
        replace_synced(file, _Pin(version=version).model_dump_json().encode())
    elif file.exists():
        file.unlink(missing_ok=True)
        sync_folder(file.parent)
