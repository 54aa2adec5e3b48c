import gzip
import importlib
import json
import math
import sys
from collections.abc import Callable
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.backtest import reading
from service.backtest.options import Columns, TimeUnit
from service.backtest.reading import read
from service.errors import ConfigurationError
from service.settings import CategoryFeature, EventsSettings, FieldsSettings, NumberFeature
from service.state.features import hashed, number_codes

SETTINGS = EventsSettings()
ROWS = [
    ("ann", "tea", "view", 1_600_000_002_000, 2.5),
    ("bob", "cup", "buy", 1_600_000_001_000, None),
    ("ann", "cup", "click", 1_600_000_002_000, 3.0),
]
NAMES = ("user_id", "item_id", "event", "timestamp", "value")


def separated(separator: str) -> str:
    lines = [separator.join(NAMES)]
    lines += [separator.join("" if cell is None else str(cell) for cell in row) for row in ROWS]
    return "\n".join(lines) + "\n"


def json_lines() -> str:
    return "".join(json.dumps(dict(zip(NAMES, row, strict=True))) + "\n" for row in ROWS)


TEXTS: dict[str, Callable[[], str]] = {
    ".csv": lambda: separated(","),
    ".tsv": lambda: separated("\t"),
    ".jsonl": json_lines,
    ".ndjson": json_lines,
}


def a_file(folder: Path, text: str, ending: str = ".csv") -> Path:
    file = folder / f"events{ending}"
    file.write_text(text)
    return file


def refused(file: Path, columns: Columns = Columns()) -> str:  # noqa: B008  # frozen
    with pytest.raises(ConfigurationError) as told:
        read(file, columns, SETTINGS)
    return str(told.value)


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("ending", TEXTS)
def test_every_format_gives_the_same_events_in_time_order(
    ending: str, is_compressed: bool, tmp_path: Path
) -> None:
    file = a_file(tmp_path, TEXTS[ending](), ending)
    if is_compressed:
        compressed = file.with_name(f"{file.name}.gz")
        compressed.write_bytes(gzip.compress(file.read_bytes()))
        file = compressed
    found = read(file, Columns(), SETTINGS)
    table = found.table
    assert table.user_ids == ["bob", "ann", "ann"]
    assert table.item_ids == ["cup", "tea", "cup"]  # of the same time: as in the file
    assert [SETTINGS.kinds[kind] for kind in table.kind] == ["buy", "view", "click"]
    assert table.timestamp.tolist() == [1_600_000_001_000, 1_600_000_002_000, 1_600_000_002_000]
    assert math.isnan(table.value[0])
    assert table.value[1:].tolist() == [2.5, 3.0]
    assert (found.bad, found.first_bad, found.timed) == (0, None, True)


def test_a_row_that_repeats_an_event_id_is_left_out_as_the_service_does(tmp_path: Path) -> None:
    ids = ["a", "b", "", "a", "", "c", "d", "b"]
    rows = [f"ann,{place},view,{place},,{one}" for place, one in enumerate(ids)]
    file = a_file(tmp_path, "\n".join([",".join((*NAMES, "event_id")), *rows, ""]))
    columns = Columns(time_unit=TimeUnit.SECONDS)
    found = read(file, columns, SETTINGS.model_copy(update={"deduplicate": 5}))
    assert found.table.item_ids == ["0", "1", "2", "4", "5", "6", "7"]  # b was too long ago
    assert found.repeated == 1
    assert len(read(file, columns, SETTINGS.model_copy(update={"deduplicate": 0})).table) == 8


def test_parquet_gives_the_same_events(tmp_path: Path) -> None:
    if find_spec("pyarrow") is None:
        pytest.skip("pyarrow is absent")
    arrow, parquet = (importlib.import_module(f"pyarrow{one}") for one in ("", ".parquet"))
    rows = [dict(zip(NAMES, row, strict=True)) for row in ROWS]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "events.parquet")
    table = read(tmp_path / "events.parquet", Columns(), SETTINGS).table
    assert table.user_ids == ["bob", "ann", "ann"]
    assert table.value[1:].tolist() == [2.5, 3.0]


def test_parquet_is_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = SimpleNamespace(to_pylist=lambda: [{"user_id": 7, "item_id": 8}, {"user_id": 7}])
    whole = SimpleNamespace(iter_batches=lambda: [batch])
    fake = SimpleNamespace(ArrowException=RuntimeError, ParquetFile=lambda content: whole)
    monkeypatch.setitem(sys.modules, "pyarrow", fake)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", fake)
    file = a_file(tmp_path, "", ".parquet")
    assert refused(file).startswith(f"{file}:2: item_id is no id: None")
    assert read(file, Columns(), SETTINGS, skip_bad=True).table.user_ids == ["7"]


def test_what_parquet_holds_may_be_decimal_or_beyond_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finer() -> list[dict[str, object]]:
        raise ValueError("Nanosecond resolution temporal type 1 is not safely convertible")

    price = SimpleNamespace(
        to_pylist=lambda: [{"user_id": 7, "item_id": 8, "value": Decimal("9.5")}]
    )
    batches = [price]
    fake = SimpleNamespace(
        ArrowException=RuntimeError,
        ParquetFile=lambda content: SimpleNamespace(iter_batches=lambda: iter(batches)),
    )
    monkeypatch.setitem(sys.modules, "pyarrow", fake)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", fake)
    file = a_file(tmp_path, "", ".parquet")
    assert read(file, Columns(), SETTINGS).table.value.tolist() == [9.5]
    batches.append(SimpleNamespace(to_pylist=finer))
    assert f"{file} cannot be read: Nanosecond" in refused(file)


def test_what_parquet_needs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "`pip install pyarrow`" in refused(a_file(tmp_path, "", ".parquet"))


def test_columns_are_mapped_by_options(tmp_path: Path) -> None:
    file = a_file(tmp_path, "who,what,when\nann,tea,1600000000.5\n")
    columns = Columns(user="who", item="what", time="when", time_unit=TimeUnit.SECONDS)
    table = read(file, columns, SETTINGS).table
    assert (table.user_ids, table.item_ids) == (["ann"], ["tea"])
    assert table.timestamp.tolist() == [1_600_000_000_500]


def test_columns_are_mapped_by_the_settings(tmp_path: Path) -> None:
    file = a_file(tmp_path, '{"customer":{"id":"ann"},"item_id":"tea"}\n', ".jsonl")
    settings = EventsSettings(fields=FieldsSettings(user_id="customer.id"))
    assert read(file, Columns(), settings).table.user_ids == ["ann"]


def test_without_a_time_the_order_of_the_file_counts(tmp_path: Path) -> None:
    found = read(a_file(tmp_path, "user_id,item_id\nb,1\na,2\n"), Columns(), SETTINGS)
    assert not found.timed
    assert found.table.user_ids == ["b", "a"]
    assert found.table.timestamp.tolist() == [0, 1000]


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("2026-01-31T09:30:00Z", 1_769_851_800_000),
        ("2026-01-31T10:30:00.25+01:00", 1_769_851_800_250),
        ("1769851800000", 1_769_851_800_000),
    ],
)
def test_a_time_is_a_number_or_rfc_3339(text: str, milliseconds: int, tmp_path: Path) -> None:
    file = a_file(tmp_path, f"user_id,item_id,timestamp\na,1,{text}\n")
    assert read(file, Columns(), SETTINGS).table.timestamp.tolist() == [milliseconds]


def test_seconds_are_not_taken_for_milliseconds(tmp_path: Path) -> None:
    file = a_file(tmp_path, "user_id,item_id,timestamp\na,1,1600000000\n")
    assert "say --time-unit s" in refused(file)
    columns = Columns(time_unit=TimeUnit.MILLISECONDS)
    assert read(file, columns, SETTINGS).table.timestamp.tolist() == [1_600_000_000]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a,1,view,1600000000000,2,more", "6 fields, but the header has 5"),
        (",1,view,1600000000000,", "user_id is no id: ''"),
        (f"a,{'1' * 513},view,1600000000000,", "item_id is no id"),
        ("a,1,stare,1600000000000,", "event kind 'stare' is not in events.kinds"),
        ("a,1,view,yesterday,", "timestamp is neither a number nor RFC 3339: 'yesterday'"),
        ("a,1,view,2026-01-31T09:30:00,", "timestamp has no zone"),
        ("a,1,view,-5,", "timestamp is out of range"),
        ("a,1,view,1600000000000,cheap", "value is no number: 'cheap'"),
        ("a,1,view,1600000000000,nan", "value is no number: 'nan'"),
        ('"a"b,1,view,1600000000000,', "',' expected after '\"'"),
        (f"a,{'1' * 140_000},view,1600000000000,", "field larger than field limit"),
    ],
)
def test_a_bad_row_ends_the_reading_or_is_counted(row: str, reason: str, tmp_path: Path) -> None:
    good = "a,1,view,1600000000000,"
    file = a_file(tmp_path, "\n".join([",".join(NAMES), row, good, row, good, ""]))
    told = refused(file)
    assert told.startswith(f"{file}:2: {reason}")
    assert "--skip-bad" in told
    found = read(file, Columns(), SETTINGS, skip_bad=True)
    assert (len(found.table), found.bad) == (2, 2)
    assert found.first_bad is not None
    assert found.first_bad.startswith(f"events.csv:2: {reason}")


@pytest.mark.parametrize(("line", "reason"), [("{", "not JSON"), ("[1]", "not a JSON object")])
def test_a_line_that_is_no_object_is_a_bad_row(line: str, reason: str, tmp_path: Path) -> None:
    good = '{"user_id":"a","item_id":"1"}'
    file = a_file(tmp_path, f"{good}\n\n{line}\n", ".jsonl")
    assert refused(file).startswith(f"{file}:3: {reason}")


@pytest.mark.parametrize(
    ("columns", "missing"),
    [(Columns(user="who"), "who"), (Columns(time="when"), "when"), (Columns(value="x"), "x")],
)
def test_a_column_that_was_named_must_be_there(
    columns: Columns, missing: str, tmp_path: Path
) -> None:
    told = refused(a_file(tmp_path, "user_id,item_id\na,1\n"), columns)
    assert f"no column '{missing}' but 'user_id', 'item_id'" in told


def test_user_and_item_must_be_there(tmp_path: Path) -> None:
    assert "no column 'item_id'" in refused(a_file(tmp_path, "user_id,thing\na,1\n"))


def test_json_objects_that_differ_are_bad_rows_or_lack_a_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        '{"user_id": "a", "item_id": "x", "price": 3}',
        '{"user_id": "a", "item_id": "y", "event": "buy"}',
        '{"user_id": "a", "item_id": "y", "timestamp": 1700000000000}',
        '{"user_id": "a", "item_id": "z"}',
    ]
    monkeypatch.setattr(reading, "_FIRST_ROWS", 1)
    file = a_file(tmp_path, "\n".join(lines), ".jsonl")
    price = NumberFeature(kind="number", name="price")
    columns = Columns(context=("price",))
    found = read(file, columns, SETTINGS, [price], skip_bad=True)
    assert found.table.item_ids == ["x", "z"]
    assert (found.bad, found.table.codes[:, 0].tolist().count(0)) == (2, 1)
    assert found.first_bad is not None
    assert "it has 'event', which the first rows have not" in found.first_bad


def test_what_objects_may_lack_need_not_be_in_the_first(tmp_path: Path) -> None:
    lines = '{"user_id": "a", "item_id": "x"}\n{"user_id": "a", "item_id": "y", "stars": 4}\n'
    file = a_file(tmp_path, lines, ".jsonl")
    found = read(file, Columns(value="stars"), SETTINGS).table.value
    assert (math.isnan(found[0]), found[1]) == (True, 4.0)
    assert "has 'star' in none of its objects" in refused(file, Columns(value="star"))


def test_objects_that_are_no_events_say_nothing_of_those_that_are(tmp_path: Path) -> None:
    good = '{"user_id": "a", "item_id": "y", "event": "view", "timestamp": 1700000000000}'
    file = a_file(tmp_path, "\n".join(['{"type": "heartbeat"}'] * 3 + [good] * 2), ".jsonl")
    found = read(file, Columns(), SETTINGS, skip_bad=True)
    assert (found.table.item_ids, found.bad, found.timed) == (["y", "y"], 3, True)


@pytest.mark.parametrize(
    "first",
    [
        '{"user_id": "a", "event": "erase", "timestamp": 1700000000000}',
        '{"user_id": "a", "item_id": "x", "event": "view"}',
    ],
    ids=["no item", "no time"],
)
def test_a_bad_first_object_is_left_out_alone(first: str, tmp_path: Path) -> None:
    good = '{"user_id": "a", "item_id": "y", "event": "view", "timestamp": 1700000000000}'
    file = a_file(tmp_path, f"{first}\n{good}\n", ".jsonl")
    found = read(file, Columns(), SETTINGS, skip_bad=True)
    assert (found.table.item_ids, found.bad, found.timed) == (["y"], 1, True)
    assert f"{file}:1: " in refused(file)


def test_one_object_with_more_than_others_is_left_out_alone(tmp_path: Path) -> None:
    plain = '{"user_id": "a", "item_id": "y"}'
    stray = '{"user_id": "a", "item_id": "x", "event": "view"}'
    file = a_file(tmp_path, "\n".join([stray, *[plain] * 3]), ".jsonl")
    found = read(file, Columns(), SETTINGS, skip_bad=True)
    assert (found.table.item_ids, found.bad) == (["y"] * 3, 1)
    assert f"{file}:1: it has 'event'" in refused(file)


def test_dotted_fields_may_be_columns_or_paths(tmp_path: Path) -> None:
    fields = SETTINGS.fields.model_copy(
        update={"user_id": "p.user", "item_id": "p.item", "event_id": "p.id"}
    )
    settings = SETTINGS.model_copy(update={"fields": fields})
    flat = a_file(tmp_path, "p.user,p.item,p.id\na,x,1\na,x,1\na,y,2\n")
    found = read(flat, Columns(), settings)
    assert (found.table.item_ids, found.repeated) == (["x", "y"], 1)
    nested = '{"p": {"user": "a", "item": "x", "id": 1}}\n'
    found = read(a_file(tmp_path, nested * 2, ".jsonl"), Columns(), settings)
    assert (found.table.item_ids, found.repeated) == (["x"], 1)


def test_one_time_that_is_none_is_a_bad_row(tmp_path: Path) -> None:
    file = a_file(tmp_path, "user_id,item_id,timestamp\na,1,1600000000000\na,2,0\n")
    assert "timestamp '0' is before 1973 in milliseconds, and times before it are not" in refused(
        file
    )
    assert read(file, Columns(), SETTINGS, skip_bad=True).bad == 1


def test_a_kind_that_is_no_text_is_a_bad_row(tmp_path: Path) -> None:
    line = '{"user_id": "a", "item_id": "x", "event": ["view"]}'
    assert "event kind ['view'] is not in events.kinds" in refused(a_file(tmp_path, line, ".jsonl"))


def test_a_broken_archive_is_told(tmp_path: Path) -> None:
    file = a_file(tmp_path, "", ".csv.gz")
    whole = gzip.compress(b"user_id,item_id\n" + b"a,x\n" * 1000)
    file.write_bytes(whole[:14] + b"\xff" * 8 + whole[22:])
    assert "is not what its ending says" in refused(file)


def test_a_file_without_events_is_refused(tmp_path: Path) -> None:
    assert "holds no events" in refused(a_file(tmp_path, "user_id,item_id\n"))
    file = a_file(tmp_path, "user_id,item_id\n,1\n")
    with pytest.raises(ConfigurationError, match=r"no events: events\.csv:2: user_id is no id"):
        read(file, Columns(), SETTINGS, skip_bad=True)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.csv")
    assert "unknown ending '.xls'" in refused(a_file(tmp_path, "", ".xls"))
    assert "cannot read" in refused(a_file(tmp_path, "plain", ".csv.gz"))
    wide = tmp_path / "wide.csv"
    wide.write_bytes("user_id,item_id\na,1\n".encode("utf-16"))
    assert "is not UTF-8" in refused(wide)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_a_row_that_is_not_utf_8_is_a_bad_row(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"events{ending}"
    text = TEXTS[ending]()
    file.write_bytes(text.replace("bob", "b\u00f6b").encode("latin-1"))
    assert f"{file}:{2 if ending == '.jsonl' else 3}: not " in refused(file)
    found = read(file, Columns(), SETTINGS, skip_bad=True)
    assert (found.table.user_ids, found.bad) == (["ann", "ann"], 1)


@pytest.mark.parametrize("ending", TEXTS)
def test_a_mark_of_the_byte_order_is_no_part_of_the_text(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"events{ending}"
    file.write_text(TEXTS[ending](), encoding="utf-8-sig")
    assert read(file, Columns(), SETTINGS).table.user_ids == ["bob", "ann", "ann"]


@pytest.mark.parametrize(
    "behind", ["c,3\nd,4\n", "c,3\n" * 40_000, 'c,3\nd,"4"\ne,5\n'], ids=["end", "much", "quote"]
)
def test_what_follows_a_quote_that_is_not_closed_is_not_left_out(
    behind: str, tmp_path: Path
) -> None:
    file = a_file(tmp_path, 'user_id,item_id\na,1\nb,"2\n' + behind)
    with pytest.raises(ConfigurationError, match=r"its ending says: .*\(a quote from line 3 on\)"):
        read(file, Columns(), SETTINGS, skip_bad=True)


def test_of_two_columns_of_one_name_none_is_read(tmp_path: Path) -> None:
    told = refused(a_file(tmp_path, "user_id,item_id,user_id\na,1,b\n"))
    assert "no column 'user_id' but 'user_id (1)', 'item_id', 'user_id (2)'" in told
    file = a_file(tmp_path, "user_id,item_id,note,note\na,1,,\n")
    assert read(file, Columns(), SETTINGS).table.user_ids == ["a"]


def test_quotes_are_the_csv_formats_own(tmp_path: Path) -> None:
    file = a_file(tmp_path, 'user_id,item_id\n"a,b","say ""tea"""\n')
    assert read(file, Columns(), SETTINGS).table.item_ids == ['say "tea"']
    file = a_file(tmp_path, 'user_id\titem_id\na\t"tea\n', ".tsv")
    assert read(file, Columns(), SETTINGS).table.item_ids == ['"tea']


CONTEXT = (CategoryFeature(name="shop"), NumberFeature(name="price"))
READ = [[hashed("north"), *number_codes([2.5])], [hashed("3"), 0]]


@pytest.mark.parametrize(
    ("text", "ending", "columns"),
    [
        ("user_id,item_id,shop,price\na,1,north,2.5\na,2,3,\n", ".csv", ("shop", "price")),
        (
            'user_id\titem_id\tprice\tcontext\na\t1\t2.5\t{"shop": "north"}\na\t2\t\t{"shop": 3}\n',
            ".tsv",
            ("price",),
        ),
        (
            '{"user_id": "a", "item_id": "1", "context": {"shop": "north", "price": 2.5}}\n'
            '{"user_id": "a", "item_id": "2", "context": {"shop": 3}}\n',
            ".jsonl",
            (),
        ),
    ],
)
def test_context_is_read_from_columns_and_objects(
    text: str, ending: str, columns: tuple[str, ...], tmp_path: Path
) -> None:
    file = a_file(tmp_path, text, ending)
    assert read(file, Columns(context=columns), SETTINGS, CONTEXT).table.codes.tolist() == READ


def test_a_context_that_nobody_asks_for_may_hold_anything(tmp_path: Path) -> None:
    file = a_file(tmp_path, "user_id,item_id,context\na,1,{\n")
    assert read(file, Columns(), SETTINGS).table.codes.shape == (1, 0)
    with pytest.raises(ConfigurationError, match="context is not JSON"):
        read(file, Columns(), SETTINGS, CONTEXT)


def test_a_context_column_must_be_there_and_read_by_a_feature(tmp_path: Path) -> None:
    file = a_file(tmp_path, "user_id,item_id\na,1\n")
    with pytest.raises(ConfigurationError, match="has no column 'shop'"):
        read(file, Columns(context=("shop",)), SETTINGS, CONTEXT)
    assert "--context names shop, which no feature" in refused(file, Columns(context=("shop",)))
