"""The settings file that a search ends with: what the given file said, and the changes."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from service.settings import merge, read_file
from service.tune.space import Value, Values


def tree_with(config: Path | None, changes: Values) -> dict[str, Any]:
    """The given file's keys, if any, with the changes in their sections."""
    tree = read_file(config) if config else {}
    for name, value in changes.items():
        nested: dict[str, Any] | Value = value
        for key in reversed(name.split(".")):
            nested = {key: nested}
        merge(tree, nested if isinstance(nested, dict) else {})
    backbone = tree.get("model", {}).get("backbone")
    if backbone:  # a choice between sections, which a file has to name
        backbone.setdefault("kind", "small")
    return tree


def write_settings(
    file: Path, config: Path | None, changes: Values, comments: Sequence[str]
) -> None:
    """Replace the file in one step. Like the given one, which may hold secrets, it is readable."""
    lines = [f"# {line}".rstrip() for comment in comments for line in comment.splitlines()]
    text = "\n".join([*lines, "", tomli_w.dumps(tree_with(config, changes))])
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.new")
    if config:
        new.touch(mode=0o600)
        shutil.copymode(config, new)
    new.write_text(text, encoding="utf-8")
    new.replace(file)
