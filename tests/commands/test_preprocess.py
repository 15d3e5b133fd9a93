import json
import subprocess
import sys
from pathlib import Path

import pytest

from tuneval import cli
from tuneval.data.indexed import SFT_COLUMNS, IndexedDataset, sft_prefix
from tuneval.files import read_json

ROOT = Path(__file__).parents[2]
COLUMNS = ("en_instruction", "en_input", "en_output", "zh_instruction", "zh_input", "zh_output")
ROWS = [
    dict(zip(COLUMNS, ("What?", "", "four", "你好", "", "A"))),
    dict(zip(COLUMNS, ("Who?", "A", "B", "请回答", "问题", ""))),
    dict(zip(COLUMNS, ("The", "", "word", "鱼", "狗", "猫"))),
]


@pytest.fixture
def records(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "alpaca.json").write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return tmp_path


def lab_command(folder):
    """The lab's words, paths apart."""
    return [
        "--input", f"{folder}/alpaca.json", "--tokenizer-name-or-path", f"{folder}/model",
        "--output-prefix", f"{folder}/finetune_dataset/alpaca", "--workers", "4", "--log-interval", "1000",
        "--tokenizer-type", "PretrainedFromHF", "--handler-name", "AlpacaStyleInstructionHandler",
        "--prompt-type", "qwen",
        "--map-keys", '{"prompt": "zh_instruction", "query": "zh_input", "response": "zh_output"}',
    ]  # fmt: skip


def test_the_labs_command_from_another_folder(records):
    command = [sys.executable, str(ROOT / "preprocess_data.py"), *lab_command(records)]
    done = subprocess.run(command, cwd=records, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "2 samples from 3 rows" in done.stdout
    assert "warning: left out, empty answer: 1 (row 1, counted from 0)" in done.stderr
    written = {p.name for p in (records / "finetune_dataset").iterdir()}
    columns = {f"alpaca_packed_{c}_document.{s}" for c in SFT_COLUMNS for s in ("bin", "idx")}
    assert written == {*columns, "alpaca_manifest.json"}


def test_both_names_write_the_same_and_map_keys_can_be_left_out(records, capsys):
    assert cli.run("preprocess", lab_command(records)) == 0
    short = ["--input", f"{records}/alpaca.json", "--tokenizer_name_or_path", f"{records}/model"]
    short += ["--output-prefix", f"{records}/short/alpaca", "--prompt-type=qwen"]
    assert cli.main(["preprocess", *short]) == 0
    assert "columns: zh_instruction, zh_input, zh_output" in capsys.readouterr().err
    for column in SFT_COLUMNS:
        for suffix in (".bin", ".idx"):
            a, b = (str(sft_prefix(records / f / "alpaca", column)) + suffix for f in ("finetune_dataset", "short"))
            assert Path(a).read_bytes() == Path(b).read_bytes()
    text = IndexedDataset(sft_prefix(records / "short" / "alpaca", "input_ids"))
    assert len(text) == 2
    manifest = read_json(records / "short" / "alpaca_manifest.json")
    assert manifest["prompt_type"] == "qwen" and manifest["map_keys"] is None


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--handler-name", "AlpacaStyleInstructionHandle"], "Known are AlpacaStyleInstructionHandler, "),
        (["--prompt-type", "qwen_if"], "--prompt-type qwen_if: unknown. Known are qwen_lf, "),
        (["--map-keys", '{"promt": "zh_instruction"}'], "--map-keys promt: unknown. Known are prompt, "),
        (["--map-keys", '{"prompt": "zh_instructions"}'], "It has zh_instruction, "),
        (["--map-keys", "{prompt: zh}"], "not valid JSON"),
        (["--strict"], "--strict: 1 bad rows, counted from 0. empty answer: 1 (rows 1)"),
        (["--prompt-typ", "qwen"], "did you mean --prompt-type?"),
        (
            ["--output-prefix", "new/"],
            "--output-prefix new/: names a folder, and the files' names begin with the prefix",
        ),
        (["--output-prefix", "new/.."], "Give a name in it, such as new/../data"),
        (["--output-prefix", "."], "Give a name in it, such as ./data"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(records, capsys, flags, said):
    base = ["--input", f"{records}/alpaca.json", "--tokenizer-name-or-path", f"{records}/model"]
    base += ["--output-prefix", f"{records}/new/alpaca"]
    assert cli.run("preprocess", [*base, *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (records / "new").exists() or list((records / "new").iterdir()) == []


def preprocess(folder, rows):
    """(status, manifest) of the rows in the words of the tokenizer's own template."""
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    words = ["--input", f"{folder}/rows.json", "--tokenizer-name-or-path", f"{folder}/model"]
    status = cli.run("preprocess", [*words, "--output-prefix", f"{folder}/data"])
    return status, read_json(folder / "data_manifest.json")


@pytest.mark.parametrize("empty", [[], None])
def test_a_first_row_without_messages_does_not_decide_what_the_others_are(records, empty):
    talk = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "four"}]
    status, manifest = preprocess(records, [{"messages": empty}, {"messages": talk}])
    assert (status, manifest["handler"], manifest["samples"]) == (0, "OpenAIInstructionHandler", 1)


@pytest.mark.parametrize("left_out", [True, False])
def test_thoughts_that_the_chat_template_leaves_out_are_told(records, tokenizer, capsys, left_out):
    """As those of DeepSeek-R1's distilled models do."""
    template = records / "model" / "chat_template.jinja"
    if left_out:
        template.write_text(tokenizer.chat_template.replace("m['content']", "m['content'].split('</think>')[-1]"))
    preprocess(records, [{"instruction": "What?", "output": "<think>two</think>four"}])
    assert ("leaves out what an answer thinks" in capsys.readouterr().err) is left_out
