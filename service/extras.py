"""Packages that only some commands and settings need."""

from importlib.util import find_spec

from service.errors import ConfigurationError


def require_packages(what: str, packages: tuple[str, ...], install: str) -> None:
    """Raises ConfigurationError where one of them is not installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ConfigurationError(
            f"{what} needs {' and '.join(missing)}, not installed here: `pip install {install}`"
        )
