"""The reader of data files: every format gives the same records, and nothing in a file ends in a traceback."""

import builtins
import bz2
import gzip
import json
import lzma
import tracemalloc

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxalign.data.json_lines import read_json_lines, read_json_objects
from jaxalign.data.rejections import DataError, RejectionLog

ROWS = [{"prompt": f"p{i}", "response": 'a\n"b" {x} [ü', "feedback": i} for i in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
FORMATS = {
    "JSON Lines": LINES.encode(),
    "byte order mark": b"\xef\xbb\xbf" + LINES.encode(),
    "gzip": gzip.compress(LINES.encode()),
    "bzip2": bz2.compress(LINES.encode()),
    "xz": lzma.compress(LINES.encode()),
    "UTF-16": LINES.encode("utf-16"),
    "UTF-16 without a mark": LINES.encode("utf-16-le"),
    "gzip of UTF-16": gzip.compress(LINES.encode("utf-16")),
    "list": json.dumps(ROWS).encode(),
    "list over lines": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "objects over lines": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
    "blank lines": LINES.replace("\n", "\n\n").encode(),
    "carriage returns": LINES.replace("\n", "\r\n").encode(),
}


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "data"
        path.write_bytes(content)
        return str(path)

    return write


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_records(name, written):
    path = written(FORMATS[name])
    log = RejectionLog()
    assert [value for _, value, _ in read_json_lines(path, log=log)] == ROWS
    assert (log.seen, log.entries) == (3, [])
    assert [value for _, value in read_json_objects(path)] == ROWS


def test_tables_are_read_by_their_header(written):
    path = written(b'prompt,response,scores.a,scores.b\n"p, ""q""","two\nlines",1,2\n\nx,y,,\n')
    assert [(line, value) for line, value, _ in read_json_lines(path)] == [
        (2, {"prompt": 'p, "q"', "response": "two\nlines", "scores": {"a": "1", "b": "2"}}),
        (5, {"prompt": "x", "response": "y"}),
    ]
    path = written(b'prompt\tresponses\nx\t["a", "b"]\n')
    assert [value for _, value in read_json_objects(path)] == [
        {"prompt": "x", "responses": ["a", "b"]}
    ]


def test_parquet_is_read_where_pyarrow_is(written, tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = str(tmp_path / "data.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert [value for _, value in read_json_objects(path)] == ROWS
    with pytest.raises(DataError, match="is not a Parquet file that can be read"):
        list(read_json_lines(written(b"PAR1xxxx")))
    plain_import = builtins.__import__

    def without_pyarrow(name, *arguments, **options):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return plain_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(DataError, match="Parquet file, which needs pyarrow: pip install pyarrow"):
        list(read_json_lines(path))


BAD = [
    (b'{"prompt": "p", "response": "r"\n', "Expecting ',' delimiter"),
    (b"# a comment\n", "Expecting value"),
    (b'{"a": "great \\ud83d"}\n', r"half of a surrogate pair"),
    (b'{"a": {"b": 1, "b": 2}}\n', "the field 'b' occurs twice"),
    (b'{"a": ' + b"1" * 5000 + b"}\n", "4300 digits"),
    (b'{"a": ' + b"[" * 100_000 + b"\n", "nested too deeply"),
    (b'{"a": "\xff"}\n', "not UTF-8 .byte 0xff at position 7"),
    (b'{"a": "\xed\xa0\xbd"}\n', "not UTF-8"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_line_is_rejected_alone(line, reason, first, written):
    path = written(line + LINES.encode() if first else LINES.encode() + line)
    log = RejectionLog()
    assert [value for _, value, _ in read_json_lines(path, log=log)] == ROWS
    (entry,) = log.entries
    assert (entry["reason"], entry["line"], log.seen) == ("invalid_json", 1 if first else 4, 4)
    with pytest.raises(DataError, match=rf":{entry['line']}: .*{reason}"):
        list(read_json_lines(path))


def test_whole_surrogate_pairs_are_characters(written):
    assert [value for _, value, _ in read_json_lines(written(b'{"a": "\\ud83d\\ude00"}'))] == [
        {"a": "\N{GRINNING FACE}"}
    ]


REFUSED = [
    (b"PK\x03\x04xyz", "is a zip archive"),
    (b"\x28\xb5\x2f\xfdxyz", "decompress it: zstd -d"),
    (b"\x80\x04\x95xyz", "pickle, which is never read"),
    (b"Hello there.\nHow are you?\n", "begins with 'Hello there.'"),
    (gzip.compress(LINES.encode() * 100, mtime=0)[:60], "compressed data ends too early"),
    (b"\x1f\x8bxyz", "Cannot read the data file"),
]


@pytest.mark.parametrize(("content", "message"), REFUSED)
def test_what_is_not_read_is_named_in_one_line(content, message, written):
    with pytest.raises(DataError, match=message) as caught:
        list(read_json_lines(written(content), log=RejectionLog()))
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        list(read_json_lines(tmp_path / "nothing"))
    with pytest.raises(DataError, match="no such file"):
        list(read_json_objects(tmp_path / "nothing"))
    with pytest.raises(DataError, match="not a regular file"):
        list(read_json_lines(tmp_path))


@hypothesis.settings(max_examples=300)
@hypothesis.given(
    st.sampled_from(
        [b"", b'{"a"', b"[{", b"a,b\n", b"a\tb\r\n", b"\xff\xfe", b"\x1f\x8b", b"PAR1"]
    ),
    st.binary(max_size=100),
)
def test_no_content_ends_in_a_traceback(tmp_path_factory, start, content):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(start + content)
    try:
        list(read_json_lines(path, log=RejectionLog()))
    except DataError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_memory_does_not_grow_with_the_file(pack, written):
    line = json.dumps({"prompt": "p" * 1000, "response": "r" * 1000}).encode() + b"\n"
    path = written(pack(line * 5000))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_json_lines(path)) == 5000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
