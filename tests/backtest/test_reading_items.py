from pathlib import Path

import pytest

from service.backtest.options import ItemColumns
from service.backtest.reading_items import read_items
from service.errors import ConfigurationError


def test_texts_are_joined_and_categories_separated(tmp_path: Path) -> None:
    file = tmp_path / "items.tsv"
    file.write_text("item_id\ttitle\ttext\tcategories\n7\tRed shoe\tof leather\tshoes|red\n")
    (item,) = read_items(file, ItemColumns())
    assert (item.item_id, item.text) == ("7", "Red shoe of leather")
    assert item.categories == ("shoes", "red")


def test_columns_are_named_and_the_last_row_of_an_item_counts(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text('{"sku": 1, "name": "old"}\n{"sku": 2}\n{"sku": 1, "name": "new"}\n')
    items = read_items(file, ItemColumns("sku", ("name",)))
    assert [(item.item_id, item.text) for item in items] == [("1", "new"), ("2", "")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("item_id,title\n,a\n", r"items\.csv:2: item_id is no id"),
        ("sku,title\n1,a\n", "--items-id"),
        ("item_id,name\n1,a\n", "--items-text"),
        ("item_id,title\n1,a,b\n", r"items\.csv:2: 3 fields"),
    ],
)
def test_what_is_no_catalogue_is_one_line(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "items.csv"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=said):
        read_items(file, ItemColumns())
