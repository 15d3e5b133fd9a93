import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tuneval.config.schema import PreprocessConfig
from tuneval.data.batches import SftDataset
from tuneval.data.indexed import SFT_COLUMNS, IndexedDataset, sft_prefix
from tuneval.data.packing import knapsack_bins
from tuneval.data.preprocess import preprocess
from tuneval.data.template import load_template
from tuneval.errors import UserError
from tuneval.files import read_json

WORDS = ["What is two plus two?", "你好", "The answer is four.", "答案是 A", "B C D", "请回答问题。"]
LAB_KEYS = '{"prompt": "zh_instruction", "query": "zh_input", "response": "zh_output"}'


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def config(tmp_path, tokenizer_folder):
    """Function (rows, **flags) -> PreprocessConfig of those rows, into tmp_path/new/data."""

    def make(rows, **flags):
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        values = {"input": path, "tokenizer_name_or_path": str(tokenizer_folder), "prompt_type": "qwen"}
        return PreprocessConfig(**{**values, "output_prefix": tmp_path / "new" / "data", **flags})

    return make


def row(i, answer=None):
    question = WORDS[i % 6] + " A" * (i % 7)
    return {"instruction": question, "input": "", "output": WORDS[(i * i + 1) % 6] if answer is None else answer}


def files_of(prefix):
    return {
        p.name: p.read_bytes() for p in prefix.parent.iterdir() if p.suffix in (".bin", ".idx")
    }  # the manifest names paths and worker counts


def columns(prefix):
    return {c: IndexedDataset(sft_prefix(prefix, c)) for c in SFT_COLUMNS}


def test_bytes_are_those_of_the_reference(config, tokenizer):
    """Files put together by hand from the reference: each piece encoded by itself, int32, the index byte by byte."""
    rows = [
        {"zh_instruction": "你好", "zh_input": "", "zh_output": "答案是 A"},
        {"zh_instruction": "What is", "zh_input": "two plus two?", "zh_output": "four " * 30},
        {"zh_instruction": "请回答", "zh_input": "问题", "zh_output": "B"},
    ]
    made = config(rows, map_keys=LAB_KEYS, handler_name="AlpacaStyleInstructionHandler", workers=2, seq_length=60)
    preprocess(made)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    user = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    ids, labels = [], []
    for question, answer in (("你好", "答案是 A"), ("请回答\n问题", "B")):
        source = [t for text in (system, user.format(question)) for t in tokenizer.encode(text)]
        target = [*tokenizer.encode(answer), end]
        ids.append(source + target)
        labels.append([-100] * len(source) + target)
    lengths = [len(i) for i in ids]
    index = b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + b"\x04" + (2).to_bytes(8, "little") + (4).to_bytes(8, "little")
    index += np.array(lengths, "<i4").tobytes() + np.array([0, 4 * lengths[0]], "<i8").tobytes()
    index += np.array([0, 1, 1, 2], "<i8").tobytes()  # the over-long second row leaves its document mark
    expected = {"input_ids": ids, "labels": labels, "attention_mask": [[1] * n for n in lengths]}
    files = {}
    for name, values in expected.items():
        files[f"data_packed_{name}_document.bin"] = np.concatenate(values).astype("<i4").tobytes()
        files[f"data_packed_{name}_document.idx"] = index
    assert files_of(made.output_prefix) == files
    manifest = read_json(f"{made.output_prefix}_manifest.json")
    assert manifest["skipped"] == {"over-long": 1} and manifest["skipped_rows"] == {"over-long": [1]}


def test_output_does_not_depend_on_the_number_of_workers(config):
    rows = [row(i, "" if i % 97 == 5 else None) for i in range(1700)]
    one = config(rows, seq_length=50)
    first = preprocess(one)
    files = files_of(one.output_prefix)
    for flags in ({"workers": 3}, {"workers": 3, "prompt_type": "auto"}, {"workers": 1, "prompt_type": "auto"}):
        again = replace(one, output_prefix=one.output_prefix.with_name("again") / "data", **flags)
        second = preprocess(again)
        if again.prompt_type == "qwen":
            assert files_of(again.output_prefix) == files
            for key in ("samples", "trained_tokens", "duplicates", "skipped_rows", "data_sha256", "lengths"):
                assert first[key] == second[key], key
            assert list(second["skipped_rows"]["empty answer"]) == list(range(5, 1700, 97))
        elif again.workers == 3:
            auto = files_of(again.output_prefix)
            assert auto != files
        else:
            assert files_of(again.output_prefix) == auto


def test_order_and_content_are_the_templates(config, tokenizer):
    from tuneval.data.records import make_handler

    rows = [row(i) for i in range(30)]
    made = config(rows, prompt_type="auto", append_eod=True)
    preprocess(made)
    template, handler = load_template("auto", tokenizer), make_handler("auto", None, rows[0])
    data = columns(made.output_prefix)
    assert len(data["input_ids"]) == 30
    eod = tokenizer.eos_token_id
    for i, raw in enumerate(rows):
        encoded = template.encode(handler(raw, i))
        assert data["input_ids"][i].tolist() == [*encoded.input_ids, eod]
        assert data["labels"][i].tolist() == [*encoded.labels, eod]
        assert set(data["attention_mask"][i].tolist()) == {1}


def test_golden_bins():
    lengths = [2, 3, 4, 5]
    assert [[lengths[i] for i in one] for one in knapsack_bins(lengths, 7)] == [[5, 2], [4, 3]]
    assert knapsack_bins([3, 3, 3], 6) == [[2, 1], [0]], "of equal lengths the last one first"


@pytest.mark.parametrize("neat", [False, True])
def test_packing(config, tokenizer, neat):
    rows = [*(row(i) for i in range(40)), row(1, "four " * 80)]
    plain = config(rows)
    preprocess(plain)
    samples = columns(plain.output_prefix)
    length, pad = 64, tokenizer.pad_token_id
    packed = replace(
        plain, output_prefix=plain.output_prefix.with_name("bins"), pack=True, neat_pack=neat, seq_length=length
    )
    manifest = preprocess(packed)
    data = columns(packed.output_prefix)
    assert set(data["input_ids"].lengths.tolist()) == {length}
    kept = samples["input_ids"].lengths.copy()
    assert kept[-1] >= length and manifest["over_long"] == 1
    kept = np.append(kept[:-1], length - 1) if neat else kept[:-1]
    bins = knapsack_bins(kept, length - 1)
    assert len(data["input_ids"]) == len(bins) == manifest["samples"] and manifest["conversations"] == len(kept)
    for b, members in enumerate(bins):
        mask = data["attention_mask"][b]
        ids, labels = data["input_ids"][b], data["labels"][b]
        at = 0
        for number, i in enumerate(members, 1):
            part = slice(at, at + kept[i])
            if i < 40:
                assert ids[part].tolist() == samples["input_ids"][i].tolist()
                assert labels[part].tolist() == samples["labels"][i].tolist()
            assert set(mask[part].tolist()) == {number if neat else 1}
            at += kept[i]
        assert set(ids[at:]) == {pad} and set(labels[at:]) == {-100} and set(mask[at:]) == {0 if neat else 1}
    assert not [p for p in packed.output_prefix.parent.iterdir() if p.name.startswith(".")]


def test_a_bad_row_is_counted_by_reason_and_strict_refuses_it(config):
    rows = [row(0), row(1, ""), {"input": "x"}, row(2), row(3, 7), "text", row(4, "")]
    made = config(rows)
    manifest = preprocess(made)
    assert manifest["skipped"] == {"empty answer": 2, "wrong type": 2, "missing column": 1}
    assert manifest["skipped_rows"] == {"empty answer": [1, 6], "missing column": [2], "wrong type": [4, 5]}
    assert manifest["samples"] == 2 and manifest["input"]["rows"] == 7
    strict = replace(made, output_prefix=made.output_prefix.with_name("strict"), strict=True)
    with pytest.raises(UserError, match=r"--strict: 5 bad rows, counted from 0\. empty answer: 2 \(rows 1, 6\); wrong"):
        preprocess(strict)
    with pytest.raises(UserError, match=r"none of its 2 rows can be used\. empty answer: 2"):
        preprocess(replace(config([row(0, ""), row(1, "")]), output_prefix=strict.output_prefix))
    assert not [p for p in made.output_prefix.parent.iterdir() if "strict" in p.name]


def test_manifest(config, tokenizer_folder):
    made = config([row(0), row(1), row(0)])
    manifest = preprocess(made)
    assert manifest == read_json(f"{made.output_prefix}_manifest.json")
    data = columns(made.output_prefix)
    assert manifest["duplicates"] == 1 and manifest["tokens"] == data["input_ids"].lengths.sum()
    assert manifest["trained_tokens"] == sum((labels != -100).sum() for labels in data["labels"])
    assert manifest["lengths"]["max"] == data["input_ids"].lengths.max()
    assert manifest["lengths"]["p50"] == sorted(data["input_ids"].lengths)[1]
    assert manifest["handler"] == "AlpacaStyleInstructionHandler" and manifest["packed"] == "no"
    assert manifest["tokenizer"]["path"] == str(tokenizer_folder) and manifest["config"]["prompt_type"] == "qwen"
    changed = preprocess(replace(config([row(0), row(1), row(2)]), output_prefix=made.output_prefix))
    assert changed["data_sha256"] != manifest["data_sha256"]
    assert changed["template_fingerprint"] == manifest["template_fingerprint"]
    assert changed["input"]["sha256"] != manifest["input"]["sha256"]


def test_a_multi_turn_file_of_messages(config):
    talk = [{"role": r, "content": c} for r, c in (("system", "You are kind."), ("user", "A"), ("assistant", "B"))]
    rows = [{"messages": talk}, {"messages": talk[:2]}, {"messages": [*talk, *talk[1:]]}]
    manifest = preprocess(config(rows, prompt_type="auto"))
    assert manifest["samples"] == 2 and manifest["skipped_rows"] == {"broken turn order": [1]}
    assert manifest["handler"] == "OpenAIInstructionHandler"


def test_wrong_flags_are_listed_together(config, tmp_path):
    wrong = config([row(0)], workers=0, neat_pack=True, map_keys="{prompt: x}")
    with pytest.raises(UserError) as caught:
        preprocess(wrong)
    assert all(
        t in str(caught.value) for t in ("3 problems", "--workers 0", "--neat-pack", "not valid JSON", "Quote it")
    )
    with pytest.raises(UserError, match=r"give the bins' length with --seq-length"):
        preprocess(config([row(0)], pack=True))
    with pytest.raises(UserError, match=r"no tokenizer\. Looked for"):
        preprocess(config([row(0)], tokenizer_name_or_path=str(tmp_path)))
    with pytest.raises(UserError, match="no row with named columns"):
        preprocess(config(["a", "b"]))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", "[]"), ("a.csv", "instruction,output\n")]
)
def test_an_empty_input_is_told_as_empty(config, tmp_path, name, text):
    made = replace(config([]), input=tmp_path / name)
    made.input.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"--input .*{name}: holds no records"):
        preprocess(made)


KILLED = """
import sys
from pathlib import Path
from tuneval.config.schema import PreprocessConfig
from tuneval.data.preprocess import preprocess
records, tokenizer, prefix = sys.argv[1:]
preprocess(
    PreprocessConfig(input=Path(records), tokenizer_name_or_path=tokenizer, output_prefix=Path(prefix), workers=2)
)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_a_killed_run_leaves_no_files_that_look_finished(config, tmp_path, tokenizer_folder):
    long = tmp_path / "long.jsonl"
    long.write_text(
        "".join(json.dumps(row(i)) + "\n" for i in range(200_000))
    )  # minutes, so it is killed in its middle
    prefix = tmp_path / "new" / "data"
    command = [sys.executable, "-c", KILLED, str(long), str(tokenizer_folder), str(prefix)]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until(lambda: any(p.stat().st_size for p in prefix.parent.glob("*") if prefix.parent.exists()))
    workers = [int(p) for p in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    run.send_signal(signal.SIGKILL)
    run.wait()
    left = list(prefix.parent.iterdir())
    assert left and all(p.name.startswith(".") and p.name.endswith(".partial") for p in left)
    with pytest.raises(UserError, match="no such file"):
        columns(prefix)
    assert len(workers) == 2
    wait_until(lambda: not any(is_running(w) for w in workers))
    preprocess(config([row(0)]))
    assert len(columns(prefix)["labels"]) == 1


@pytest.mark.parametrize("old", [{}, {"pack": True, "neat_pack": True, "seq_length": 64}, None])
def test_a_kill_while_publishing_leaves_nothing_the_old_set_or_the_new(config, tmp_path, monkeypatch, old):
    """What lies there before each change of a name is what a kill at that moment leaves."""
    made = config([row(i) for i in range(3)], **(old or {}))
    preprocess(made)
    if old is None:
        Path(f"{made.output_prefix}_manifest.json").unlink()  # files as MindSpeed-LLM leaves them
    left = []

    def watched(change):
        def act(*args, **options):
            left.append(shutil.copytree(made.output_prefix.parent, tmp_path / f"left-{len(left)}") / "data")
            return change(*args, **options)

        return act

    before = whole(made.output_prefix)
    for where, name in ((os, "replace"), (Path, "unlink")):
        monkeypatch.setattr(where, name, watched(getattr(where, name)))
    preprocess(config([row(i) for i in range(3, 6)], append_eod=True))
    monkeypatch.undo()
    found, after = [whole(prefix) for prefix in left], whole(made.output_prefix)
    order = [0 if f == before else 2 if f == after else 1 if f is None else "mixed" for f in found]
    assert before != after and order == sorted(order) and set(order) == {0, 1, 2}


def whole(prefix):
    """What reads as a data set behind `prefix`: manifest and tokens; None where nothing does."""
    try:
        data = SftDataset(prefix)
    except UserError:
        return None
    samples = [data[i] for i in range(len(data))]
    return data.manifest, [(s.input_ids.tolist(), s.labels.tolist(), s.bounds) for s in samples]


def wait_until(condition, seconds=300.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def is_running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.real
@pytest.mark.slow
def test_every_real_record_equals_the_tokenizers_own_chat_template(real_model, real_data, tmp_path):
    from transformers import AutoTokenizer

    from tuneval.data.records import BadRow, make_handler, read_rows

    rows = list(read_rows(real_data / "alpaca-chinese-52k.json.xz"))[::10]
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    template, handler = load_template("auto", tokenizer), make_handler("auto", None, rows[0])
    conversations = []
    for i, raw in enumerate(rows):
        try:
            conversations.append(handler(raw, i))
        except BadRow as bad:
            assert bad.reason == "empty answer"
    assert len(conversations) > 5000
    texts = [[{"role": m.role, "content": m.content} for m in c.messages] for c in conversations]
    own = tokenizer.apply_chat_template(texts, tokenize=True, return_dict=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    different = 0
    for conversation, encoded, expected in zip(conversations, template.encode_batch(conversations).samples(), own):
        answer = conversation.messages[-1].content
        trained = [t for t in encoded.labels if t != -100]
        assert trained == [*tokenizer.encode(answer), end]
        prompt = template.prompt_ids(conversation.messages[:-1]) if encoded.input_ids != expected else []
        different += encoded.input_ids != expected
        assert encoded.input_ids == expected or (answer[0].isspace() and encoded.input_ids[: len(prompt)] == prompt), (
            conversation
        )
    assert different < len(conversations) / 1000
