"""The command line as a process: quick help, exit statuses, errors without a traceback."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from tuneval import cli
from tuneval.config import flags, schema
from tuneval.errors import UserError


def tuneval(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "tuneval", *arguments], capture_output=True, text=True, timeout=120)


def test_help_lists_every_command():
    found = tuneval("--help")
    assert found.returncode == 0
    assert all(name in found.stdout for name in cli.COMMANDS)


def test_help_imports_nothing_heavy():
    code = "import sys; from tuneval.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


SLIPS = {
    "quickstart": ["--model", "nothing"],
    "doctor": ["--nonsense"],
    "download": ["--nonsense"],
    "convert": ["--load", "nothing", "--save", "x", "--to", "mcore", "--max-shard-size-gib", "-1"],
    "verify": ["nothing", "nowhere"],
    "preprocess": ["--input", "nothing", "--tokenizer-name-or-path", "nothing", "--output-prefix", "x"],
    "inspect": ["--data-path", "nothing"],
    "plan": ["--load", "nothing", "--seq-length", "0"],
    "tune": ["--load", "nothing", "--data-path", "nothing", "--save", "x", "--lr", "-1"],
    "chat": ["--load", "nothing", "--top-p", "2"],
    "generate": ["--load", "nothing"],
    "evaluate": [],
    "report": ["nothing"],
    "ablate": ["nothing"],
    "export": ["--load", "nothing", "--save", "x"],
}
"""Command -> words that are wrong in themselves."""
MORE_SLIPS = {
    "tune": [
        ["--nproc-per-node", "0"],
        ["--lr", "1e-5", "--split", "a", "--prompt-type", "b", "--tokenizer-name-or-path", "c", "--min-lr", "1",
         "--tensor-model-parallel-size", "0", "--lr-warmup-iters", "9", "--train-iters", "9"],
    ],
}  # fmt: skip
"""Further ones, behind those."""


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_and_slips_of_a_command_import_neither_torch_nor_transformers(command):
    """They take a second or more to import; whoever mistypes a flag waits for neither."""
    code = (
        "import sys\nfrom tuneval.cli import main\n"
        "try: status = main(sys.argv[1:])\n"
        "except SystemExit as left: status = left.code\n"
        "print('status', status, *({'torch', 'transformers'} & set(sys.modules)))"
    )
    cases = [(["--help"], 0), (SLIPS[command], 2)]
    cases += [([*SLIPS[command], *words], 2) for words in MORE_SLIPS.get(command, ())]
    for words, status in cases:
        found = subprocess.run(
            [sys.executable, "-c", code, command, *words], capture_output=True, text=True, timeout=60
        )
        assert found.stdout.strip().splitlines()[-1] == f"status {status}", (words, found.stdout, found.stderr)


def test_every_command_has_a_schema_and_a_file():
    from importlib.util import find_spec

    for name in cli.COMMANDS:
        assert hasattr(schema, f"{name.capitalize()}Config"), name
        assert find_spec(f"tuneval.commands.{name}"), name


def test_unknown_command_names_the_nearest():
    found = tuneval("tunee")
    assert found.returncode == 2
    assert "did you mean tune?" in found.stderr


def test_bad_input_is_one_clear_line():
    found = tuneval(
        "preprocess", "--input", "a", "--tokenizer-name-or-path", "b", "--output-prefix", "c", "--workerz", "2"
    )
    assert found.returncode == 2
    assert "--workerz: unknown flag; did you mean --workers?" in found.stderr
    assert "Traceback" not in found.stderr


def test_positional_words():
    assert cli.positional_as_flags("verify", ["A", "B"]) == ["--a", "A", "--b", "B"]
    assert cli.positional_as_flags("report", ["R1", "R2", "--lang", "en"]) == ["--runs", "R1", "R2", "--lang", "en"]
    assert cli.positional_as_flags("tune", ["--load", "m"]) == ["--load", "m"]
    for rest in (["--b", "B"], ["--b=B"], ["--config", "c.yaml"]):
        assert cli.positional_as_flags("verify", ["A", *rest]) == ["--a", "A", *rest]


def test_one_checkpoint_to_verify_asks_for_no_flag_that_nobody_typed(capsys):
    assert cli.run("verify", ["A", "--no-logits"]) == 2
    assert capsys.readouterr().err == "tuneval verify: A: one checkpoint; give the other, too: tuneval verify A B\n"


@pytest.mark.parametrize("command", ["tune", "chat", "generate", "convert", "evaluate", "inference"])
def test_an_adapter_that_is_not_there_is_told_before_the_model_is_loaded(command, tmp_path):
    words = {
        "tune": ["--data-path", "nothing", "--save", str(tmp_path / "run")],
        "generate": ["--prompt", "a"],
        "convert": ["--to", "hf", "--save", str(tmp_path / "out")],
        "evaluate": ["--task", "lm_eval:arc_easy", "--output", str(tmp_path / "result")],
    }.get(command, [])
    parsed = flags.parse(
        getattr(schema, f"{command.capitalize()}Config"),
        ["--load", str(tmp_path), "--lora-load", str(tmp_path / "nowhere"), *words],
        command,
    )
    with pytest.raises(UserError, match="nowhere: no such folder"):
        import_module(f"tuneval.commands.{command}_flags").check(parsed.config)


BELOW_A_FILE = {
    "convert": ["--load", "MODEL", "--to", "mcore", "--save", "FILE/out"],
    "export": ["--load", "MODEL", "--save", "FILE/out"],
    "preprocess": ["--input", "ROWS", "--tokenizer-name-or-path", "MODEL", "--output-prefix", "FILE/out"],
    "generate": ["--load", "MODEL", "--input", "ROWS", "--output", "FILE/out"],
    "tune": ["--load", "MODEL", "--data-path", "DATA", "--save", "FILE/out", "--fp32", "--global-batch-size", "1"],
}
"""Commands that write, told to write below a file: that refuses root too."""


@pytest.mark.parametrize("command", BELOW_A_FILE)
def test_what_can_not_be_written_is_one_clear_line(command, tiny_folder, tmp_path, capsys):
    import json

    (tmp_path / "file").write_text("")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "You are kind.", "response": "four"}) * 1 + "\n")
    places = {"MODEL": str(tiny_folder()), "ROWS": str(rows), "DATA": str(tmp_path / "data")}
    places["FILE/out"] = str(tmp_path / "file" / "out")
    words = ["--input", str(rows), "--tokenizer-name-or-path", places["MODEL"], "--output-prefix", places["DATA"]]
    assert command != "tune" or cli.run("preprocess", words) == 0
    capsys.readouterr()
    assert cli.run(command, [places.get(word, word) for word in BELOW_A_FILE[command]]) == 2
    error = capsys.readouterr().err
    assert f"tuneval {command}: {tmp_path / 'file'}" in error, error
    assert "a part of this path is a file" in error or "a file is in the way" in error


def test_a_reader_that_leaves_ends_the_command_quietly(tmp_path, tiny_folder):
    """As `tuneval generate ... | head -1` does."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "You are kind."}\n' * 3)
    words = ["generate", "--load", str(tiny_folder()), "--input", str(rows), "--max-new-tokens", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tuneval", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=300) == 141, error
    assert "Traceback" not in error and "BrokenPipe" not in error


def test_what_is_wrong_stands_in_the_summary_of_torchrun_too(tmp_path, monkeypatch, capsys):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    assert cli.run("inspect", ["--data-path", str(tmp_path / "d"), "--inddex", "0"]) == 2
    told = "tuneval inspect: --inddex: unknown flag; did you mean --index?"
    assert told in capsys.readouterr().err
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    assert f"traceback : {told}\n" in str(ChildFailedError("tuneval", {0: failure}))
