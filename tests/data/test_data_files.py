"""What a path of data means: files, patterns, folders, datasets saved to disk, and addresses of datasets of the Hub."""

import json
import sys
import types

import pyarrow
import pytest
from pyarrow import ipc, parquet

from jaxalign.data import cache, data_files, hub_datasets, sources
from jaxalign.data.evaluation_records import read_evaluation_records
from jaxalign.data.json_lines import read_json_lines, read_json_objects
from jaxalign.data.rejections import DataError, RejectionLog
from jaxalign.inspection.file_inspection import inspect

ROWS = [{"prompt": f"p{i}", "completion": f"r{i}", "label": i % 2 == 0} for i in range(8)]
TABLE = pyarrow.Table.from_pylist(ROWS)
FIELDS = "response=completion,feedback=label"


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def csv_text(rows, delimiter=","):
    names = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    return "\n".join(names).replace(",", delimiter) + "\n"


def write_folder(folder):
    """The rows in files of three formats, whose order is that of their names, and what is no data."""
    folder.mkdir()
    (folder / "a.jsonl").write_text(lines(ROWS[:3]))
    (folder / "b.csv").write_text(csv_text(ROWS[3:6]))
    parquet.write_table(TABLE.slice(6), folder / "c.parquet")
    (folder / "README.md").write_text("Feedback, kept.\n")
    (folder / "dataset_infos.json").write_text("{}")
    return folder


def save_to_disk(folder, parts):
    """The files that Dataset.save_to_disk writes: Arrow streams, and state.json with their order."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(parts):05d}.arrow" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        with ipc.new_stream(folder / name, part.schema) as writer:
            writer.write_table(part, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def prompts(path, fields=FIELDS):
    source = sources.JsonlSource({"all": str(path)}, "triplet", fields=fields)
    return [(record.prompt, record.feedback) for record in source.records("all")]


EXPECTED = [(row["prompt"], (float(row["label"]),)) for row in ROWS]


def test_files_patterns_folders_and_saved_datasets_give_the_same_records(tmp_path):
    folder = write_folder(tmp_path / "mixed")
    saved = save_to_disk(tmp_path / "saved", [TABLE.slice(0, 5), TABLE.slice(5)])
    with ipc.new_file(tmp_path / "file.arrow", TABLE.schema) as writer:
        writer.write_table(TABLE)
    for path in (folder, f"{folder}/[abc].*", saved, tmp_path / "file.arrow"):
        found = prompts(path)
        assert found == EXPECTED, path


def test_a_file_of_several_is_named_in_a_rejection(tmp_path):
    folder = write_folder(tmp_path / "mixed")
    (folder / "b.csv").write_text("prompt,completion,label\nq,,1\n")
    log = RejectionLog()
    source = sources.JsonlSource({"all": str(folder)}, "triplet", fields=FIELDS)
    assert len(list(source.records("all", log))) == 5
    assert log.first.startswith(f"{folder}/b.csv:2: the field 'completion' is missing")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-0.parquet", "test-0.parquet"], r"files of the splits test, train.*/\*test\*"),
        (["data/train.csv", "notes.txt"], r"holds no data files \(it holds the folders data\)"),
        (["train/state.json", "dataset_dict.json"], "holds the splits train, test; .*/train"),
        (["state.json"], "does not list Arrow files"),
    ],
)
def test_a_folder_without_data_of_one_split_is_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = {"splits": ["train", "test"], "_data_files": [{"filename": "../secret"}]}
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        data_files.expand(tmp_path)


def test_a_damaged_arrow_file_is_named(tmp_path):
    for content in (b"ARROW1xxxxxxxxxxxx", b"\xff\xff\xff\xffxxxxxxxxxxxx"):
        (tmp_path / "x.arrow").write_bytes(content)
        with pytest.raises(DataError, match=r"x\.arrow is not an Arrow file that can be read"):
            list(read_json_lines(tmp_path / "x.arrow"))


# Awkward tables, as spreadsheets and pandas write them.

PAIR = [{"role": "user", "content": "What's up?"}, {"role": "assistant", "content": 'A "sky".'}]


def test_tables_of_spreadsheets_and_pandas_are_read(tmp_path):
    path = tmp_path / "t.csv"

    def rows(text, encoding="utf-8"):
        path.write_text(text, encoding=encoding)
        return [value for _, value, _ in read_json_lines(path)]

    expected = [{"prompt": "a", "response": "b", "feedback": "True"}]
    assert rows(",prompt,response,feedback\n0,a,b,True\n") == expected  # pandas' index
    assert rows("prompt;response;feedback\na;b;True\n", "utf-8-sig") == expected
    asked = "prompt;Was it good?;rating (1-5)\na;b;3\n"
    assert rows(asked) == [{"prompt": "a", "Was it good?": "b", "rating (1-5)": "3"}]
    quoted = str(PAIR).replace('"', '""')
    assert rows(f'chosen,rejected\n"{quoted}","{quoted}"\n') == [{"chosen": PAIR, "rejected": PAIR}]
    # A cell over several lines whose second line begins like JSON.
    assert rows('prompt,response\n"a\n{b}",c\n') == [{"prompt": "a\n{b}", "response": "c"}]


@pytest.mark.parametrize(
    ("header", "cell"),
    [
        ("responses", "['a' 'b']"),  # Python would join the two strings
        ("feedback", "[1.  0.5]"),
        ("scores", "{'a': nan}"),
        ("chosen", "[{'role': 'user', 'content': 'a'}\n {'role': 'assistant', 'content': 'b'}]"),
        ("messages", "[__import__('os').getcwd()]"),
    ],
)
def test_a_cell_that_cannot_be_read_back_is_rejected(tmp_path, header, cell):
    path = tmp_path / "t.csv"
    path.write_text(f'prompt,{header}\np,"{cell}"\n')
    log = RejectionLog()
    assert list(read_json_lines(path, log=log)) == []
    assert f"the cell of '{header}' holds a list or object that is neither JSON" in log.first


def test_thumbs_may_be_emoji(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("prompt,response,feedback\na,b,\N{THUMBS UP SIGN}\na,c,\U0001f44e\U0001f3fd\n")
    assert [feedback for _, feedback in prompts(path, "")] == [(1.0,), (0.0,)]


# Addresses of the Hub.


class FakeDataset:
    def __init__(self, table):
        self.table = table

    def with_format(self, name):
        assert name == "arrow"
        return self

    def iter(self, batch_size):
        for start in range(0, len(self.table), batch_size):
            yield self.table.slice(start, batch_size)


@pytest.fixture
def library(monkeypatch):
    """A stand-in for the library datasets; `calls` lists what was loaded, `error` is raised if it is set."""
    module = types.ModuleType("datasets")
    module.__version__, module.calls, module.error, module.table = "4.0.0", [], None, TABLE

    def load_dataset(*arguments, **options):
        module.calls.append((*arguments, options))
        if module.error is not None:
            raise module.error
        return FakeDataset(module.table)

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    hub_datasets._load.cache_clear()
    yield module
    hub_datasets._load.cache_clear()


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("hf_dataset://a/b", ("a/b", None, None, "train")),
        ("hf_dataset://a/b-1.x:train[:10%]", ("a/b-1.x", None, None, "train[:10%]")),
        ("hf_dataset://a/b/conf:test", ("a/b", "conf", None, "test")),
        ("hf_dataset://a/b@refs/convert/parquet/c", ("a/b", "c", "refs/convert/parquet", "train")),
        ("hf_dataset://a/b@v1.0:x", ("a/b", None, "v1.0", "x")),
    ],
)
def test_an_address_has_name_configuration_revision_and_split(address, parts):
    assert hub_datasets.parse(address) == parts


@pytest.mark.parametrize("address", ["hf_dataset://b", "hf_dataset://../x", "hf_dataset://a/b:"])
def test_other_addresses_are_refused(address):
    with pytest.raises(DataError, match="is no address of a dataset; its form is hf_dataset://"):
        hub_datasets.parse(address)


def test_a_folder_of_the_same_name_is_not_read_instead(library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "thumbs").mkdir(parents=True)
    with pytest.raises(DataError, match="would read the folder someone/thumbs"):
        prompts("hf_dataset://someone/thumbs")
    assert library.calls == []


def test_an_address_is_read_wherever_a_file_is(library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = "hf_dataset://someone/thumbs:test"
    assert prompts(address) == EXPECTED
    assert [value for _, value in read_json_objects(address)] == ROWS
    found = read_evaluation_records(address, fields=FIELDS, side_file=str(tmp_path / "side"))
    assert [record.prompt for record in found.records] == [row["prompt"] for row in ROWS]
    inspected = inspect(address, vocabulary="bytes")
    assert (inspected["kind"], inspected["records"]) == ("triplet", 8)
    assert f"TRAIN_FILE = {address!r}" in (tmp_path / inspected["gin_file"]).read_text()
    # The library was asked once, never for a dataset's code.
    assert library.calls == [("someone/thumbs", None, {"split": "test", "revision": None})]


def test_a_cache_of_a_dataset_is_reused_until_the_dataset_changes(library, tmp_path):
    options = {"train_file": "hf_dataset://a/b", "fields": [FIELDS], "splits": ["train"]}
    made = cache.cache("t", str(tmp_path / "c"), **options)
    assert cache.cache("t", str(tmp_path / "c"), **options) == made
    library.table = pyarrow.Table.from_pylist([row | {"completion": "new"} for row in ROWS])
    hub_datasets._load.cache_clear()
    with pytest.raises(DataError, match="already holds a different cache"):
        cache.cache("t", str(tmp_path / "c"), **options)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("Unknown split \"x\". Should be one of ['train']."), "name a split"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)"), "load it once"),
        (RuntimeError("Dataset scripts are no longer supported"), "add @refs/convert/parquet"),
        (ValueError("Config name is missing.\nPick one: ['c', 'd']"), r"\['c', 'd'\]; name a conf"),
        (OSError("401"), "your access to it"),
    ],
)
def test_what_the_library_cannot_read_is_one_line_with_a_remedy(library, error, message):
    library.error = error
    with pytest.raises(DataError, match=message) as caught:
        prompts("hf_dataset://a/b:x")
    assert "\n" not in str(caught.value)


def test_without_the_library_or_with_an_old_one_a_line_says_what_to_install(library, monkeypatch):
    library.__version__ = "3.6.0"
    with pytest.raises(DataError, match=r"can run code of a dataset.*pip install 'datasets>=4'"):
        prompts("hf_dataset://a/b")
    assert library.calls == []
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="needs the library datasets: pip install 'datasets>=4'"):
        prompts("hf_dataset://a/b")


def test_the_library_itself_reads_its_cache_offline(tmp_path, monkeypatch):
    """The cache of the Hub's datasets is filled from a local file, as no network is there."""
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import constants

    (tmp_path / "d.jsonl").write_text(lines(ROWS))
    datasets.load_dataset("json", data_files=str(tmp_path / "d.jsonl"), cache_dir=str(tmp_path))
    (made,) = (tmp_path / "json").glob("default-*/0.0.0/*/")
    cached = tmp_path / "someone___thumbs" / "default" / "0.0.0" / ("0" * 40)
    cached.parent.mkdir(parents=True)
    made.rename(cached)
    (cached / "json-train.arrow").rename(cached / "thumbs-train.arrow")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_datasets._load.cache_clear()
    assert prompts("hf_dataset://someone/thumbs:train[2:]") == EXPECTED[2:]
    with pytest.raises(DataError, match="without network only datasets in the library's cache"):
        prompts("hf_dataset://someone/else")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert prompts(tmp_path / "saved") == EXPECTED
