from pathlib import Path

import pytest

from service.backtest.options import ItemColumns
from service.backtest.reading_items import read_items
from service.errors import ConfigurationError
from service.settings import VectorSettings


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


IMAGE, AUDIO = VectorSettings(name="image", width=3), VectorSettings(name="audio", width=2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("items.jsonl", '{"item_id": 1, "pixels": [1, 2.5, 0]}\n{"item_id": 2, "pixels": null}\n'),
        ("items.csv", 'item_id,pixels\n1,"[1, 2.5, 0]"\n2,\n'),
    ],
)
def test_vectors_are_lists_or_json_in_a_field(tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    columns = ItemColumns(vectors=(("image", "pixels"),))
    one, other = read_items(file, columns, (IMAGE, AUDIO))
    assert one.vectors["image"].tolist() == [1.0, 2.5, 0.0]
    assert [list(item.vectors) for item in (one, other)] == [["image"], []]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("1 2 3", r"items\.tsv:2: image is no vector: a field has it as JSON"),
        ('["1", 2, 3]', r"items\.tsv:2: image is no vector: it is not a list of numbers"),
        ("[1, 2]", r"items\.tsv:2: vectors\.image: 2 numbers; items\.vectors says 3"),
        ("", r"no vector in the columns image, audio; --items-vectors names them"),
    ],
)
def test_what_is_no_vector_is_one_line(tmp_path: Path, cell: str, said: str) -> None:
    file = tmp_path / "items.tsv"
    file.write_text(f"item_id\timage\ttitle\n1\t{cell}\ta\n")
    with pytest.raises(ConfigurationError, match=said):
        read_items(file, ItemColumns(), (IMAGE, AUDIO))


def test_a_column_of_a_source_that_is_not_in_the_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="names touch, which"):
        read_items(tmp_path / "none", ItemColumns(vectors=(("touch", "t"),)), (IMAGE,))


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


def test_a_column_that_was_named_must_be_there(tmp_path: Path) -> None:
    file = tmp_path / "items.csv"
    file.write_text("item_id,title,text\n7,Red shoe,of leather\n")
    named = ItemColumns(text=("title", "txt"), categories="genre", named=("genre", "txt"))
    with pytest.raises(ConfigurationError, match="no column 'genre', 'txt'"):
        read_items(file, named)
