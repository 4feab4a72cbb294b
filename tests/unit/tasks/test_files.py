"""Local files as people have them: names, compressions, encodings, and cells of every type."""

import bz2
import csv
import gzip
import json
import lzma
from datetime import date
from decimal import Decimal

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capo_ds.config import BenchmarkConfig, ConfigError, TaskConfig
from capo_ds.tasks import load_benchmark, load_problems
from capo_ds.tasks.files import exact_text, read_file

ROWS = [{"q": "a, b?", "a": "072"}, {"q": 'He said "1"\u2028x', "a": "2.50"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def answers(path, **keys):
    keys = {"prompt_column": "q", "answer_column": "a"} | keys
    return [
        p.answer
        for p in load_benchmark(BenchmarkConfig(name="custom", path=str(path), **keys), None)
    ]


def separated(path, delimiter):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([["q", "a"], *(r.values() for r in ROWS)])
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "ROWS.JSONL", "rows.ndjson", "a b[1]*ü/r?.jsonl"])
def test_json_lines_under_any_name(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(LINES + "\n")
    assert answers(path) == ["072", "2.50"]
    assert read_file(path) == ROWS


@pytest.mark.parametrize(("name", "delimiter"), [("r.csv", ","), ("r.CSV", ","), ("r.tsv", "\t")])
def test_separated_values(tmp_path, name, delimiter):
    assert read_file(separated(tmp_path / name, delimiter)) == ROWS


@pytest.mark.parametrize("name", ["rows.json", "lines.json"])
def test_json_is_a_list_or_lines(tmp_path, name):
    (tmp_path / name).write_text(LINES if name == "lines.json" else json.dumps(ROWS, indent=1))
    assert read_file(tmp_path / name) == ROWS


def zstandard(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESSIONS = {".gz": gzip.compress, ".BZ2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_compressed(tmp_path, suffix, form):
    plain = separated(tmp_path / "rows.csv", ",").read_bytes() if form == "csv" else LINES.encode()
    path = tmp_path / f"rows.{form}{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](plain))
    assert read_file(path) == ROWS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_other_encodings_of_unicode(tmp_path, encoding, form):
    rows = [{"q": "Größe?", "a": "5"}]
    text = "q,a\r\nGröße?,5\r\n" if form == "csv" else json.dumps(rows[0], ensure_ascii=False)
    path = tmp_path / f"rows.{form}"
    path.write_bytes(text.encode(encoding))
    assert read_file(path)[0]["q"] == "Größe?"
    assert answers(path) == ["5"]


def test_folders_with_odd_names_and_mixed_files(tmp_path):
    folder = tmp_path / "data [v1] *"
    (folder / "train").mkdir(parents=True)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "train.jsonl").write_text("not read")
    (folder / "train" / "one.JSONL").write_text(LINES)
    separated(folder / "train" / "two.tsv", "\t")
    (folder / "my-test.csv.gz").write_bytes(gzip.compress(b"q,a,more\nz,9,1\n"))
    keys = {"prompt_column": "q", "answer_column": "a", "path": str(folder)}
    config = TaskConfig(name="custom", **keys)
    assert [p.answer for p in load_problems(config, "train")] == ["072", "2.50"] * 2
    assert [p.answer for p in load_problems(config, "test")] == ["9"]
    some = TaskConfig(name="custom", **keys, train_split="train[1:3]")
    assert [p.answer for p in load_problems(some, "train")] == ["2.50", "072"]
    with pytest.raises(ConfigError, match=r"no file of split 'dev' in it; it holds my-test.csv.gz"):
        load_problems(TaskConfig(name="custom", **keys, train_split="dev"), "train")


def test_save_to_disk_in_an_odd_folder(tmp_path):
    folder = tmp_path / "s [1]*"
    datasets.Dataset.from_list(ROWS).save_to_disk(folder)
    assert answers(folder) == ["072", "2.50"]


TYPED = {
    "float32": (pa.array([0.1, 27.0], pa.float32()), ["0.1", "27"]),
    "float16": (pa.array([np.float16(0.1), np.float16(3)], pa.float16()), ["0.1", "3"]),
    "float64": (pa.array([1e-7, 0.1 + 0.2]), ["0.0000001", "0.30000000000000004"]),
    "decimal": (pa.array([Decimal("0.10"), Decimal("27.00")]), ["0.10", "27"]),
    "int64": (pa.array([2**53 + 1, -7]), [str(2**53 + 1), "-7"]),
    "category": (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
    "text": (pa.array(["007", " 1,080 "]), ["007", "1,080"]),
}


@pytest.mark.parametrize("kind", TYPED)
@pytest.mark.parametrize("form", ["parquet", "arrow", "stream"])
def test_typed_references_are_read_exactly(tmp_path, kind, form):
    column, expected = TYPED[kind]
    table = pa.table({"q": ["a", "b"], "a": column})
    path = tmp_path / f"rows.{'parquet' if form == 'parquet' else 'arrow'}"
    if form == "parquet":
        pq.write_table(table, path)
    else:
        new = pa.ipc.new_file if form == "arrow" else pa.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table)
    assert answers(path) == expected


def test_class_labels_and_nested_float32(tmp_path):
    features = datasets.Features(
        {
            "q": datasets.Value("string"),
            "a": datasets.ClassLabel(names=["no", "yes"]),
            "more": {"x": datasets.List(datasets.Value("float32"))},
        }
    )
    rows = [{"q": "?", "a": 1, "more": {"x": [0.1]}}]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    assert read_file(tmp_path / "rows.parquet") == [{"q": "?", "a": "yes", "more": {"x": [0.1]}}]
    assert answers(tmp_path / "rows.parquet") == ["yes"]


@pytest.mark.parametrize(
    ("literal", "expected"),
    [
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("0.1234567890123456789", "0.1234567890123456789"),
        ("1e22", "10000000000000000000000"),
        ("27.0", "27"),
        ('"007"', "007"),
        ("1e-7", "0.0000001"),
    ],
)
def test_numbers_of_json_keep_their_digits(tmp_path, literal, expected):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"q": "?", "a": {literal}}}\n')
    assert answers(path) == [expected]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "is empty"),
        ("", "is empty"),
        (float("nan"), "nan, no number"),
        (float("inf"), "inf, no number"),
        (Decimal("NaN"), "no number"),
        (True, "a bool, no text or number"),
        (b"5", "a bytes"),
        (date(2024, 1, 1), "a date"),
        ([1], "a list"),
        ({"x": 1}, "a dict"),
        (1e30, "last digits"),
    ],
)
def test_references_without_exact_words_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        exact_text(value)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "22"], [1, 22]),
        (["1", ""], [1, None]),
        (["0.5", "2.0"], [0.5, 2.0]),
        (["007", "8"], ["007", "8"]),
        (["1.50", "2.0"], ["1.50", "2.0"]),
        (["123456789012345678901234567890", "1"], ["123456789012345678901234567890", "1"]),
        (["nan", "NA"], ["nan", "NA"]),
    ],
)
def test_cells_become_numbers_only_where_nothing_is_lost(tmp_path, cells, expected):
    path = tmp_path / "rows.csv"
    path.write_text("q,a\n" + "".join(f"x,{cell}\n" for cell in cells))
    assert [row["a"] for row in read_file(path)] == expected


def test_pandas_own_files(tmp_path):
    frame = pd.DataFrame({"q": ["x", "y"], "a": np.array([0.1, 0.7], dtype="float32")})
    frame.to_parquet(tmp_path / "rows.parquet")
    assert answers(tmp_path / "rows.parquet") == ["0.1", "0.7"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "r.jsonl",
            '{"q": "é"}\n{"q": "é"}\n'.encode("latin-1"),
            "line 1: byte 0xe9.*iconv",
        ),
        ("r.csv", "q,a\nx,1\né,2\n".encode("cp1252"), "r.csv, line 3: byte 0xe9"),
        ("r.jsonl", b'{"q": 1}\n{"q": \n', "r.jsonl, line 2: not valid JSON"),
        ("r.jsonl", b"[1]\n", "line 1: a row must be an object"),
        ("r.json", b'[{"q": 1}, 2]', "entry 1: a row must be an object"),
        ("r.csv", b"q,a\n1,2,3\n", "line 2: 3 cells for 2 columns"),
        ("r.csv", b'q,a\n"1,2\n', "line 2: unexpected end of data"),
        ("r.csv", b"q,q\n1,2\n", "line 1: column 'q' is there twice"),
        ("r.txt", b"x", "files of this name are not read; use .jsonl"),
        ("r.gz", b"x", "files of this name are not read"),
        ("r.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-12], "cannot be read"),
        ("r.jsonl.xz", b"x", "line 1: not valid JSON"),
        ("r.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; run"),
        ("r.parquet", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("r.jsonl", b"\n<!DOCTYPE html>\n<html>", "a web page, not the data"),
        ("r.csv", b"PK\x03\x04", "a ZIP archive; unpack it"),
        ("r.csv", b"q;a\n1;2\n", "line 1: one column, 'q;a'.*separated by ';'"),
        ("r.csv", b"q, a\n1, 2\n", "no column 'a'; set .*answer_column to one of 'q', ' a'"),
        ("r.json", b'{"data": [{"q": "1", "a": "2"}]}', "one object of lists .'data'.*rows alone"),
        ("r.jsonl", b'[{"q": "1", "a": "2"}]', "of one list, the name is .json"),
        ("r.jsonl", b'{"q": "1", "a": "2", "a": "3"}', "line 1: .*key 'a' is there twice"),
        ("r.jsonl", b'{"q": "\\ud800", "a": "2"}', "row 0: column 'q' holds half a character"),
        ("r.jsonl", b'{"a":' + b"[" * 99999 + b"]" * 99999 + b"}", "line 1: .*recursion"),
        ("r.jsonl", b'{"q": "1", "a": "2", "images": ["b"]}', "'images' holds what the model"),
        ("r.parquet", b"x", "r.parquet: cannot be read"),
        ("r.arrow", b"x", "r.arrow: cannot be read"),
        ("r.jsonl", b"", "it holds no rows"),
        ("r.csv", b"q,a\nx,\n", "row 0: column 'a' is empty"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        answers(tmp_path / name)


@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_what_a_file_is_packed_by_its_content_says(tmp_path, ending, pack):
    path = tmp_path / f"rows.jsonl{ending}"
    path.write_bytes(pack(LINES.encode()))
    assert read_file(path) == ROWS


def test_a_column_of_a_type_that_cannot_be_had_is_named(tmp_path):
    column = pa.array([[("k", "1")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"q": ["x"], "a": ["1"], "m": column}), tmp_path / "r.parquet")
    with pytest.raises(ConfigError, match=r"column 'm' is of type map.*leave it out"):
        answers(tmp_path / "r.parquet")


def test_images_are_not_opened(tmp_path):
    kinds = {"q": datasets.Value("string"), "a": datasets.Value("string")}
    kinds |= {"picture": datasets.Image(), "more": datasets.List(datasets.Image())}
    broken = {"bytes": b"no picture", "path": None}
    table = datasets.Dataset.from_dict(
        {"q": ["x"], "a": ["1"], "picture": [broken], "more": [[broken]]},
        features=datasets.Features(kinds),
    )
    table.to_parquet(tmp_path / "r.parquet")
    assert answers(tmp_path / "r.parquet") == ["1"]


def test_splits_and_parts_of_what_save_to_disk_wrote(tmp_path):
    table = datasets.Dataset.from_dict({"q": ["x", "y"], "a": ["1", "2"]})
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table, dev=table).save_to_disk(tmp_path / "several")
    assert answers(tmp_path / "one") == ["1", "2"]
    assert answers(tmp_path / "one", split="train[1:]") == ["2"]
    assert answers(tmp_path / "several", split="train[:1]+dev") == ["1", "1", "2"]
    with pytest.raises(ConfigError, match=r"no split .test.*train.*dev"):
        answers(tmp_path / "several")
    with pytest.raises(ConfigError, match="subset 'main' is for data sets of the hub"):
        answers(tmp_path / "one", subset="main")
    with pytest.raises(ConfigError, match=r"task.test_path: .* is one split"):
        keys = {"prompt_column": "q", "answer_column": "a"}
        load_problems(TaskConfig(name="custom", path=str(tmp_path / "one"), **keys), "test")


def test_the_same_rows_in_two_forms_are_not_read_twice(tmp_path):
    (tmp_path / "test.jsonl").write_text(LINES)
    separated(tmp_path / "test.csv", ",")
    with pytest.raises(ConfigError, match=r"test.csv and test.jsonl in it seem to be the same"):
        answers(tmp_path)


def test_a_row_is_named_by_its_place_in_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"q": "?", "a": str(n)}) for n in range(20)]
    lines[13] = '{"q": "?", "a": NaN}'
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="row 13: column 'a' holds nan"):
        answers(path, shuffle=True)


def test_local_files_need_no_cache(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text(LINES)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/proc/no/such/place")
    assert answers(tmp_path / "rows.jsonl") == ["072", "2.50"]
