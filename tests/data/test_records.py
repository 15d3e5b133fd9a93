import csv
import gzip
import json
import lzma
import os
import sys

import pytest

from tuneval.data.records import BadRow, handler_name, make_handler, read_rows
from tuneval.data.rows import parsed, read_unparsed
from tuneval.errors import UserError

ALPACA = "AlpacaStyleInstructionHandler"
SHAREGPT = "SharegptStyleInstructionHandler"
OPENAI = "OpenAIInstructionHandler"
ROWS = [{"instruction": "a\n,\"'", "input": "", "output": "一"}, {"instruction": "b", "input": "c", "output": "2"}]


ARRAYS = ("array.json", "bom.json", "x.json.xz")


def write_csv(path):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def as_lines(rows):
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


def told(conversation):
    return [(m.role, m.content) for m in conversation.messages]


def reason(handler, row):
    with pytest.raises(BadRow) as caught:
        handler(row, 0)
    return caught.value.reason


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    array, lines = json.dumps(ROWS, ensure_ascii=False, indent=1), as_lines(ROWS)
    (tmp_path / "array.json").write_text(" \n" + array, encoding="utf-8")
    (tmp_path / "bom.json").write_text(array, encoding="utf-8-sig")
    (tmp_path / "lines.json").write_text(lines, encoding="utf-8")
    (tmp_path / "lines.jsonl").write_text(lines + "\n", encoding="utf-8")
    (tmp_path / "x.json.xz").write_bytes(lzma.compress(array.encode()))
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(write_csv(tmp_path / "x.csv").read_bytes()))
    (tmp_path / "notes.txt").write_text("left out")
    files = [p for p in tmp_path.iterdir() if p.suffix != ".txt"]
    assert len(files) == 9
    for file in files:
        totals = []
        assert list(read_rows(file, totals.append)) == ROWS, file
        assert totals == ([2] if file.suffix == ".parquet" or file.name in ARRAYS else [])
    assert list(read_rows(tmp_path)) == ROWS * 9


def test_a_torn_line_is_one_bad_row(tmp_path):
    (tmp_path / "x.jsonl").write_text(as_lines(ROWS[:1]) + '{"instruction": "to\n' + as_lines(ROWS[1:]))
    first, torn, last = read_rows(tmp_path / "x.jsonl")
    assert [first, last] == ROWS and torn.reason == "not JSON"
    assert reason(make_handler("auto", None, first), torn) == "not JSON"
    unparsed = list(read_unparsed(tmp_path / "x.jsonl"))
    assert all(isinstance(line, bytes) for line in unparsed)
    assert [parsed(unparsed[0]), parsed(unparsed[2])] == ROWS and parsed(unparsed[1]).reason == "not JSON"


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    def fails(name, content, match):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=match):
            list(read_rows(tmp_path / name))

    fails("x.json", b'[{"a": 1},', "x.json: not valid JSON")
    fails("x.json.xz", b"plain", "damaged compressed file")
    fails("x.json.gz", gzip.compress(b"[1, 2]")[:-9], "damaged compressed file")
    fails("x.jsonl", "中文".encode("gbk"), "not UTF-8")
    fails("x.txt", b"", r"unknown kind of file; known are \.json, \.jsonl, \.csv, \.parquet, also with \.xz or \.gz")
    fails("x.parquet", b"no", "not a parquet file")
    with pytest.raises(UserError, match="no such file or folder"):
        list(read_rows(tmp_path / "none.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no record file in this folder"):
        list(read_rows(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    fails("y.parquet", b"", "needs pyarrow: pip install pyarrow")


def test_alpaca_with_the_labs_map_keys():
    row = {"zh_instruction": "做", "zh_input": "这", "zh_output": "好", "en_instruction": "do", "en_output": "ok"}
    map_keys = {"prompt": "zh_instruction", "query": "zh_input", "response": "zh_output"}
    expected = [("user", "做\n这"), ("assistant", "好")]
    assert told(make_handler(ALPACA, map_keys, row)(row, 7)) == expected
    assert make_handler(ALPACA, map_keys, row)(row, 7).row == 7
    for name in (ALPACA, "auto"):
        assert told(make_handler(name, None, row)(row, 0)) == expected, "zh columns come first"
    english = {k: v for k, v in row.items() if k.startswith("en")}
    assert told(make_handler("auto", None, english)(english, 0)) == [("user", "do"), ("assistant", "ok")]


def test_alpaca_history_system_and_switched_off_query():
    row = {"instruction": "q2", "input": "more", "output": "a2", "history": [["q1", "a1"]], "system": "S"}
    turns = [("user", "q1"), ("assistant", "a1"), ("user", "q2\nmore"), ("assistant", "a2")]
    assert told(make_handler("auto", None, row)(row, 0)) == [("system", "S"), *turns]
    assert told(make_handler(ALPACA, None, row)(row, 0)) == turns[2:], "MindSpeed's default"
    keys = {"history": "history", "system": "system", "query": ""}
    expected = [("system", "S"), *turns[:2], ("user", "q2"), turns[3]]
    assert told(make_handler(ALPACA, keys, row)(row, 0)) == expected
    row["history"] = row["system"] = None
    assert told(make_handler(ALPACA, keys, row)(row, 0)) == [("user", "q2"), turns[3]]


def test_alpaca_bad_rows_have_reasons():
    handler = make_handler("auto", None, {"instruction": "", "input": "", "output": "", "history": ""})
    good = {"instruction": "a", "input": None, "output": "b"}
    assert told(handler(good, 0)) == [("user", "a"), ("assistant", "b")]
    assert told(handler({**good, "output": ["b"]}, 0)) == [("user", "a"), ("assistant", "b")]
    assert reason(handler, {"instruction": "a"}) == "missing column"
    assert reason(handler, {**good, "output": 3}) == reason(handler, {**good, "instruction": ["a"]}) == "wrong type"
    assert reason(handler, "text") == reason(handler, {**good, "history": 3}) == "wrong type"
    assert reason(handler, {**good, "history": [["a"]]}) == "wrong type"
    assert reason(handler, {**good, "output": ""}) == reason(handler, {**good, "output": None}) == "empty answer"
    assert reason(handler, {**good, "output": []}) == "empty answer"
    assert reason(handler, {**good, "output": ["a", "b"]}) == "several answers"
    assert reason(handler, {**good, "instruction": ""}) == "empty prompt"


def test_sharegpt_and_its_tags():
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    row = {"conversations": turns, "system": "S"}
    assert told(make_handler(SHAREGPT, None, row)(row, 0)) == [("user", "q"), ("assistant", "a")]
    assert told(make_handler("auto", None, row)(row, 0))[0] == ("system", "S")
    first = {"conversations": [{"from": "system", "value": "T"}, *turns], "system": "S"}
    assert told(make_handler("auto", None, first)(first, 0))[0] == ("system", "T")
    other = {"chat": [{"who": "me", "text": "q"}, {"who": "gpt", "text": "a"}]}
    keys = {"messages": "chat", "tags": {"role_tag": "who", "content_tag": "text", "user_tag": "me"}}
    assert told(make_handler(SHAREGPT, keys, other)(other, 0)) == [("user", "q"), ("assistant", "a")]


def test_openai_messages_and_content_parts():
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": "a"},
        ]
    }
    for name in (OPENAI, "auto"):
        handler = make_handler(name, None, row)
        assert told(handler(row, 0)) == [("user", "q"), ("assistant", "a")] and handler_name(handler) == OPENAI


@pytest.mark.parametrize(
    "roles, expected",
    [
        (["user"], "broken turn order"),
        (["assistant", "user"], "broken turn order"),
        (["user", "user", "assistant", "assistant"], "broken turn order"),
        ([], "broken turn order"),
        (["system"], "broken turn order"),
        (["user", "poet"], "broken turn order"),
        (["user", "assistant", "tool", "assistant"], "tool use"),
    ],
)
def test_turn_order(roles, expected):
    handler = make_handler(OPENAI, None, {"messages": []})
    assert reason(handler, {"messages": [{"role": r, "content": "x"} for r in roles]}) == expected


def test_bad_messages_have_reasons():
    handler = make_handler(OPENAI, None, {"messages": []})
    assert reason(handler, {}) == "missing column"
    assert reason(handler, {"messages": "x"}) == reason(handler, {"messages": ["x"]}) == "wrong type"
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]
    assert reason(handler, {"messages": turns}) == "empty answer"
    turns[1] = {"role": "assistant", "content": "a", "tool_calls": [1]}
    assert reason(handler, {"messages": turns}) == "tool use"
    turns[1] = {"role": "assistant", "content": [{"type": "image_url"}]}
    assert reason(handler, {"messages": turns}) == "wrong type"


def test_unknown_names_come_with_the_known_ones_nearest_first():
    row = ROWS[0]
    with pytest.raises(UserError, match=rf"AlpacaStyleHandler: unknown\. Known are {ALPACA}, "):
        make_handler("AlpacaStyleHandler", None, row)
    with pytest.raises(UserError, match=r"--map-keys promt: unknown\. Known are prompt, "):
        make_handler(ALPACA, {"promt": "instruction"}, row)
    with pytest.raises(UserError, match=r"--map-keys prompt: no column instructions in the input\. It has instr"):
        make_handler(ALPACA, {"prompt": "instructions"}, row)
    with pytest.raises(UserError, match="3 must be the name of a column"):
        make_handler(ALPACA, {"prompt": 3}, row)
    with pytest.raises(UserError, match=r"--map-keys tags roletag: unknown\. Known are role_tag"):
        make_handler(SHAREGPT, {"tags": {"roletag": "who"}}, {"conversations": []})
    with pytest.raises(UserError, match=r"no column instruction for the prompt: the input has text\. Name it with"):
        make_handler("auto", None, {"text": "x"})
    with pytest.raises(UserError, match="no column conversations with the messages"):
        make_handler(SHAREGPT, None, {"text": "x"})


def test_half_a_character_is_a_bad_row():
    handler = make_handler("auto", None, {"instruction": "a", "output": "b"})
    with pytest.raises(BadRow, match="half a character"):
        handler({"instruction": "x \ud83d", "output": "b"}, 0)


def test_messages_column_must_be_a_name():
    with pytest.raises(UserError):
        make_handler("auto", {"messages": ["a"]}, {"instruction": "a", "output": "b"})


def test_missing_prompt_column_is_named_although_the_query_is_there():
    with pytest.raises(UserError, match="no column instruction for the prompt: the input has input, output"):
        make_handler("auto", None, {"input": "a", "output": "b"})


def test_damaged_gzip_endless_brackets_and_numbers(tmp_path):
    raw = gzip.compress(json.dumps([{"instruction": "a" * i, "output": "b" * i} for i in range(1, 300)]).encode())
    (tmp_path / "a.json.gz").write_bytes(raw[:100] + b"\x00\x01\x02\xff\xff" + raw[105:])
    with pytest.raises(UserError, match="damaged compressed file"):
        list(read_rows(tmp_path / "a.json.gz"))
    (tmp_path / "b.jsonl").write_text("[" * 100_000 + "\n")
    assert [r.reason for r in read_rows(tmp_path / "b.jsonl")] == ["not JSON"]
    (tmp_path / "c.jsonl").write_text("1" * 5000 + "\n")  # Python makes no number of that
    assert [r.reason for r in read_rows(tmp_path / "c.jsonl")] == ["not JSON"]


GOOD = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]


@pytest.mark.parametrize("indent", [None, 2])
def test_objects_around_the_rows_are_read(tmp_path, indent):
    def rows(value):
        (tmp_path / "a.json").write_text(json.dumps(value, indent=indent) + "\n")
        return list(read_rows(tmp_path / "a.json"))

    assert rows({"version": 1, "data": GOOD}) == rows(GOOD) == GOOD
    assert rows(GOOD[0]) == GOOD[:1]
    talk = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    assert rows(talk) == [talk] and rows({"data": [talk]}) == [talk]
    assert rows([]) == [] and rows({"data": []}) == [{"data": []}]
    with pytest.raises(UserError, match=r"several lists of objects: train, test\. Keep"):
        rows({"train": GOOD, "test": GOOD})


def test_json_lines_called_json_may_be_torn(tmp_path):
    file = tmp_path / "a.json"
    lines = [json.dumps(row) for row in GOOD]
    file.write_text("\n\n" + "\n".join([*lines, lines[0][:9]]))
    assert list(read_rows(file))[:2] == GOOD
    file.write_text("\n".join([lines[0][:9], *lines]))
    assert [r.reason if isinstance(r, BadRow) else r for r in read_rows(file)] == ["not JSON", *GOOD]


@pytest.mark.parametrize(
    "text", ["[", "[{]", "[" + "1" * 5000 + "]", '{\n"a": 1,\n', "[" * 100_000, "{\n" + '"a": {' * 100_000]
)
def test_json_that_is_none_is_told(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"not valid JSON.*an object in each line"):
        list(read_rows(tmp_path / "a.json"))


def test_odd_csv_and_parquet(tmp_path):
    (tmp_path / "a.csv").write_text("instruction,output\na,b,c\nd\ne,f\n")
    rows = list(read_rows(tmp_path / "a.csv"))
    assert rows[0].reason == "more cells than columns" and rows[2] == {"instruction": "e", "output": "f"}
    assert reason(make_handler("auto", None, rows[2]), rows[1]) == "empty answer"
    (tmp_path / "b.csv").write_bytes("指令,output\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"not UTF-8 text.*Save it as UTF-8"):
        list(read_rows(tmp_path / "b.csv"))
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"instruction": ["a"] * 500, "output": ["b"] * 500}), tmp_path / "c.parquet")
    raw = (tmp_path / "c.parquet").read_bytes()
    for content in (b"", raw[:40], raw[:20] + b"\xff" * 60 + raw[80:], raw[:-30] + b"\xff" * 30):
        (tmp_path / "c.parquet").write_bytes(content)
        with pytest.raises(UserError, match="not a parquet file, or damaged"):
            list(read_rows(tmp_path / "c.parquet"))


def test_a_pipe_is_told(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        list(read_rows(tmp_path / "a.jsonl"))


def test_tags_must_be_texts():
    with pytest.raises(UserError, match=r"--map-keys tags role_tag: \['who'\] must be a text"):
        make_handler(SHAREGPT, {"tags": {"role_tag": ["who"]}}, {"conversations": []})
