"""No file of the project names a package registry's host or somebody's own folders.

Locks and build files then work unchanged behind any mirror, and nothing tells where a
file was written. Looks at what git tracks or would add; an image's own paths inside a
Dockerfile are no one's folders.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# In pieces, so that this file passes its own check.
HOSTS = (
    ("pypi", "org"),
    ("pythonhosted", "org"),
    ("download.pytorch", "org"),
    ("anaconda", "org"),
    ("maven", "org"),
    ("maven.apache", "org"),
    ("npmjs", "org"),
    ("npmjs", "com"),
    ("yarnpkg", "com"),
    ("deb.debian", "org"),
    ("security.debian", "org"),
    ("archive.ubuntu", "com"),
    ("crates", "io"),
    ("proxy.golang", "org"),
    ("sum.golang", "org"),
    ("rubygems", "org"),
)
HOST = re.compile(r"(?<![\w-])(" + "|".join(re.escape(".".join(host)) for host in HOSTS) + r")\b")
FOLDER = re.compile(r"(?<![\w.~$}-])/(?:home|Users|root|work|workspaces?)/[\w.-]+|[A-Z]:\\Users\\")
OPTION = re.compile(r"--(?:extra-)?index-url|--find-links")


def main() -> int:
    faults = list(_faults())
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def _faults() -> Iterator[str]:
    for path in _files():
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # a picture, or deleted and not yet committed
        for number, line in enumerate(text.splitlines(), start=1):
            for what, found in _found(path, line):
                yield f"{path}:{number}: {what}: {found}"


def _found(path: str, line: str) -> Iterator[tuple[str, str]]:
    if host := HOST.search(line):
        yield "host of a package registry", host[0]
    if "Dockerfile" not in path and (folder := FOLDER.search(line)):
        yield "absolute path of one machine", folder[0]
    if path.startswith("requirements") and (option := OPTION.search(line)):
        yield "package index in a lock", option[0]


def _files() -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [path for path in listed.stdout.split("\0") if path]


if __name__ == "__main__":
    sys.exit(main())
