"""Files that a long run writes at its end."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import ConfigurationError


def require_writable(*files: Path) -> None:
    """Before the run. Raises ConfigurationError where one of them could not be written."""
    for file in files:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=file.parent).close()
            if file.exists():
                file.open("ab").close()


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Raises ConfigurationError in place of OSError."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"cannot write {file}: {error.strerror or error}") from None
