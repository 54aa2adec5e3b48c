#!/usr/bin/env bash
# Makes or mends .venv: this project, editable, and every package at the version and hash that the
# locks name. Called by make, which skips it while .venv/.installed is newer than the locks.
#
#   .venv/.installing  stands while packages are put in. Left behind, it tells of a set-up that was cut
#                      short, whose packages may be half there: the environment is then made again.
#   .venv/.installed   stands when all is in.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=.venv
# The environment cannot be made by its own Python, which is first on the path when it is activated.
PATH=${PATH//"$PWD/$venv/bin:"/}

say() { printf 'set-up: %s\n' "$*"; }

fail() {
    printf 'set-up: %s\n' "$*" >&2
    exit 1
}

check_python() {
    command -v "$python" >/dev/null ||
        fail "$python is not there; install Python 3.11 or newer, or name one: make PYTHON=python3.12 ..."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$python" --version) is too old: 3.11 or newer is needed; name one: make PYTHON=python3.12 ..."
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"
}

is_usable() {
    [ ! -e "$venv/.installing" ] &&
        "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Two makes at once (demo in one terminal, test in another) would install over each other.
if command -v flock >/dev/null; then
    exec 9<"$0"
    flock 9
    newer=$(find requirements* pyproject.toml -newer "$venv/.installed" 2>&1 || true)
    if [ -z "$newer" ] && is_usable; then exit 0; fi
fi

if ! is_usable; then
    check_python
    [ ! -e "$venv" ] || say "$venv is incomplete or too old: making it again"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    say "installing about 5 GB on Linux, most of it torch"
fi

pip_options=(--quiet --disable-pip-version-check --require-hashes --only-binary ':all:')
"$venv/bin/python" -m pip install "${pip_options[@]}" -r requirements-build.lock
# uv brings its own list of authorities, as pip does; a company's proxy is known to the system's only.
[ ! -s /etc/ssl/certs/ca-certificates.crt ] || export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}"
uv=("$venv/bin/uv" pip install --quiet --python "$venv/bin/python")
# Offline and with the locked build backend: nothing unpinned can come in here.
"${uv[@]}" --offline --no-deps --no-build-isolation --editable .

touch "$venv/.installing"
"${uv[@]}" --require-hashes -r requirements.lock
# Only the data inside is used; what it depends on would replace newer versions.
"${uv[@]}" --require-hashes --no-deps -r requirements-demo.txt
# Keeps the time of the start: what was edited meanwhile is installed by the next make.
mv "$venv/.installing" "$venv/.installed"
say "$venv is as the locks say ($SECONDS s)"
