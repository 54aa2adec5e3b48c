import functools
import hashlib
import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from service.errors import ConfigurationError
from service.sandbox import jars
from service.sandbox.jars import Jar, kafka_jars, listed_jars, parse_list

CONTENT = b"a jar"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
JAR = Jar(SHA256, PurePosixPath("org/example/thing/1.2/thing-1.2.jar"))


@pytest.fixture
def one_jar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars, "listed_jars", lambda: (JAR,))


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the only Maven repository that jgo is told of; no network."""
    pytest.importorskip("jgo", reason="downloading needs the extra `sandbox`")
    folder = tmp_path / "mirror"
    folder.mkdir()
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        settings = tmp_path / "jgo.conf"
        settings.write_text(f"[repositories]\ncentral = http://127.0.0.1:{server.server_port}\n")
        monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
        monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
        yield folder
        server.shutdown()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def put(folder: Path, content: bytes) -> Path:
    file = folder / JAR.path
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


def test_reads_what_sha256sum_writes_and_skips_comments() -> None:
    assert list(parse_list(["# why", "", f"{SHA256}  {JAR.path}"])) == [JAR]


@pytest.mark.parametrize(
    "line",
    [
        "abcd  org/example/thing/1.2/thing-1.2.jar",
        f"{'x' * 64}  org/example/thing/1.2/thing-1.2.jar",
        f"{SHA256}  org/example/thing/1.2/other-1.2.jar",
        f"{SHA256}  ../../thing/1.2/thing-1.2.jar",
        f"{SHA256}  /org/thing/1.2/thing-1.2.jar",
        SHA256,
    ],
)
def test_a_broken_line_is_a_bug(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the messages are for us
        list(parse_list([line]))


def test_the_committed_list_names_every_jar_once() -> None:
    paths = [jar.path for jar in listed_jars()]
    assert PurePosixPath("org/apache/kafka/kafka_2.13/4.3.0/kafka_2.13-4.3.0.jar") in paths
    assert len({path.parent.parent for path in paths}) == len(paths)


@pytest.mark.usefixtures("one_jar")
def test_a_full_cache_needs_no_jgo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_jgo(monkeypatch)
    file = put(tmp_path, CONTENT)
    assert kafka_jars(tmp_path) == (file,)


@pytest.mark.usefixtures("one_jar")
def test_a_missing_extra_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_jgo(monkeypatch)
    with pytest.raises(ConfigurationError, match=r"install headwater\[sandbox\]"):
        kafka_jars(tmp_path)


@pytest.mark.usefixtures("one_jar")
def test_a_changed_jar_in_the_cache_is_refused(tmp_path: Path) -> None:
    put(tmp_path, CONTENT + b"!")
    with pytest.raises(ConfigurationError, match="is not the jar"):
        kafka_jars(tmp_path)


@pytest.mark.usefixtures("one_jar")
def test_a_missing_jar_is_downloaded_once(tmp_path: Path, mirror: Path) -> None:
    cache = tmp_path / "cache"
    source = put(mirror, CONTENT)

    (file,) = kafka_jars(cache)
    source.unlink()

    assert file.read_bytes() == CONTENT
    assert kafka_jars(cache) == (file,)
    assert [path for path in cache.rglob("*") if path.is_file()] == [file]


@pytest.mark.usefixtures("one_jar")
def test_a_changed_download_is_refused_and_not_kept(tmp_path: Path, mirror: Path) -> None:
    put(mirror, CONTENT + b"!")
    with pytest.raises(ConfigurationError, match="is not the jar"):
        kafka_jars(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.usefixtures("one_jar")
def test_the_users_maven_repository_is_read_and_left_as_it_is(tmp_path: Path, mirror: Path) -> None:
    mine = put(tmp_path / "m2", CONTENT)
    (file,) = kafka_jars(tmp_path / "cache")
    assert file.read_bytes() == mine.read_bytes() == CONTENT


@pytest.mark.usefixtures("one_jar", "mirror")
def test_a_failed_download_is_one_line_and_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError, match=r"^cannot download thing-1\.2\.jar .*network"):
        kafka_jars(tmp_path / "cache")
    assert capfd.readouterr() == ("", "")


def without_jgo(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("jgo", "jgo.config", "jgo.constants", "jgo.maven"):
        monkeypatch.setitem(sys.modules, name, None)
