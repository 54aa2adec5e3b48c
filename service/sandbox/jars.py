"""The jars of the local Kafka: fetched once with jgo, checked against a committed list always.

The list (`jars.sha256`) names every jar with its version and hash, so nothing is resolved at
run time: no dependency is picked on the user's machine that was not tried on ours. A jar is
downloaded beside the cache, checked, and only then renamed into it; an interrupted download
leaves nothing that a later start could trip over. Checking all of them takes about 0.05 s,
hence every start does it.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from service.errors import ConfigurationError

if TYPE_CHECKING:
    from jgo.maven import MavenContext

_log = logging.getLogger(__name__)

_PARALLEL_DOWNLOADS = 8  # most jars are small: the wait is round trips, not bandwidth
_DOWNLOAD_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the list."""

    sha256: str
    path: PurePosixPath  # group/as/folders/artifact/version/artifact-version.jar


def kafka_jars(cache: Path | None = None) -> tuple[Path, ...]:
    """Every jar of the class path, in the list's order, each with its hash checked.

    Downloads what the cache lacks and blocks meanwhile; with a full cache it neither touches
    the network nor needs jgo. `cache` defaults to a folder in the user's cache. Raises
    `ConfigurationError` when jgo is missing, a download fails or a jar differs from the list.
    """
    cache = cache or _user_cache()
    jars = listed_jars()
    missing = [jar for jar in jars if not (cache / jar.path).exists()]
    for jar in jars:
        if jar not in missing:
            check(jar, cache / jar.path)
    if missing:
        _download(missing, cache)
    return tuple(cache / jar.path for jar in jars)


def listed_jars() -> tuple[Jar, ...]:
    """The committed list."""
    text = resources.files("service.sandbox").joinpath("jars.sha256").read_text(encoding="utf-8")
    return tuple(parse_list(text.splitlines()))


def parse_list(lines: Iterable[str]) -> Iterator[Jar]:
    """Jars from lines as `sha256sum` writes them; empty lines and comments are skipped.

    Raises `ValueError` on anything else: the list is ours, so a broken one is a bug.
    """
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        sha256, name = line.split()
        path = PurePosixPath(name)
        if len(bytes.fromhex(sha256)) != hashlib.sha256().digest_size:
            raise ValueError(f"not a sha256: {line}")
        # The coordinates are read back from the path, and the path is joined to the cache.
        artifact, version = path.parts[-3:-1]
        if path.name != f"{artifact}-{version}.jar" or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"not the path of a jar in a Maven repository: {line}")
        yield Jar(sha256, path)


def check(jar: Jar, file: Path) -> None:
    """Raises `ConfigurationError` unless `file` is the listed jar, byte for byte."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != jar.sha256:
        raise ConfigurationError(
            f"{file} is not the jar that Headwater was tested with: "
            f"its sha256 is {found}, expected {jar.sha256}; delete it to download it again"
        )


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "headwater" / "jars"


def _download(jars: Sequence[Jar], cache: Path) -> None:
    _log.info("downloading %d jars of Apache Kafka; this happens once", len(jars))
    cache.mkdir(parents=True, exist_ok=True)
    # In the cache's own file system, so that the last step is a rename; one per process, so
    # that two first starts at once do not write into each other's files.
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as staging, _quiet():
        maven = _maven(Path(staging))
        with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
            # Unlike submit, map drops what has not begun when one fails.
            list(pool.map(lambda jar: _fetch(jar, maven, cache), jars))


def _maven(staging: Path) -> "MavenContext":
    """Downloads land in `staging`; the user's own mirrors and local Maven repository are used."""
    try:
        from jgo.config import GlobalSettings
        from jgo.constants import MAVEN_CENTRAL_URL
        from jgo.maven import MavenContext
    except ImportError:
        raise ConfigurationError(
            "the local Kafka needs the package jgo: install headwater[sandbox]"
        ) from None
    user = GlobalSettings.load()
    mirrors = dict(user.repositories)  # asked in this order
    mirrors.setdefault("central", MAVEN_CENTRAL_URL)
    return MavenContext(
        repo_cache=staging,
        local_repos=[user.repo_cache],
        remote_repos=mirrors,
        timeout=_DOWNLOAD_TIMEOUT_S,
    )


def _fetch(jar: Jar, maven: "MavenContext", cache: Path) -> None:
    *group, artifact, version, name = jar.path.parts
    component = maven.project(".".join(group), artifact).at_version(version)
    try:
        source = component.artifact().resolve()
    except (OSError, RuntimeError) as error:  # requests raises OSErrors, jgo RuntimeErrors
        raise ConfigurationError(
            f"cannot download {name} ({type(error).__name__}): the first start of the local Kafka "
            "needs the network, later ones do not"
        ) from error
    check(jar, source)
    target = cache / jar.path
    target.parent.mkdir(parents=True, exist_ok=True)
    # A copy, because the source may lie in the user's Maven repository and stays theirs.
    copy = shutil.copyfile(source, maven.repo_cache / f"{jar.sha256}.jar")
    copy.replace(target)


@contextmanager
def _quiet() -> Iterator[None]:
    """jgo warns about what is handled here, such as a repository that lacks a file."""
    logger = logging.getLogger("jgo")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
