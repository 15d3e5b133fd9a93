"""`tuneval COMMAND ...`: finds the command's file and runs it. Imports nothing heavy before it must."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuneval.config.flags import Parsed
    from tuneval.config.schema import LaunchConfig

COMMANDS = {
    "quickstart": "the whole way on a tiny model, offline, in minutes",
    "doctor": "check this machine: versions, device, what is missing",
    "download": "fetch a model or tokenizer into a folder",
    "convert": "Hugging Face <-> Megatron, any TP x PP layout",
    "verify": "prove two checkpoints equal",
    "preprocess": "instruction records -> token files",
    "inspect": "show what a token file holds",
    "plan": "memory, traffic and bubble of a training layout, before there are machines",
    "tune": "supervised fine-tuning, full or LoRA",
    "chat": "chat with a model in the terminal",
    "generate": "answer one prompt, or a file of prompts",
    "evaluate": "score a model on an exam; compare two results",
    "report": "one self-contained page from run folders",
    "ablate": "a sweep of tunings, resumable, compared in one report",
    "export": "take a tuned model out of its run folder",
}
"""Command -> one line. `commands/<command>.py` holds `main(parsed)`, `config/schema.py` the flags: `<Command>Config`."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 well, 1 the check failed, 2 bad input, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"tuneval {version('tuneval')}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS and command not in OF_ENTRIES:
        nearest = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        print(f"tuneval: unknown command {command}{hint}\n\n{usage()}", file=sys.stderr)
        return 2
    return run(command, rest)


def run(command: str, arguments: list[str]) -> int:
    """Parse the command's flags and run it."""
    return _run(f"tuneval {command}", lambda: (command, positional_as_flags(command, arguments), ()))


def run_entry(file: str, arguments: list[str] | None = None) -> int:
    """Run what an entry file with MindSpeed-LLM's name stands for, with the defaults that it has there.

    Args:
        file: the entry file's path.
        arguments: the words behind it.
    """

    def translated() -> tuple[str, list[str], tuple[str, ...]]:
        from tuneval.config.mindspeed import translate

        ours = translate(os.path.basename(file), sys.argv[1:] if arguments is None else arguments)
        return ours.command, ours.words, ours.notices

    return _run(os.path.basename(file), translated)


def _run(program: str, say: Callable[[], tuple[str, list[str], tuple[str, ...]]]) -> int:
    """Run the command that `say` names with its flags and notices; `program` is what the user typed."""
    from tuneval.errors import UserError, tell

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that the terminal does not know is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # torch's own lines on errors that are told below
    try:
        from tuneval.config import flags, schema

        command, words, notices = say()
        parsed = flags.parse(getattr(schema, f"{command.capitalize()}Config"), words, program)
        _check_flags(command, parsed)
        from tuneval import console, runtime

        runtime.prepare()
        launched = getattr(parsed.config, "launch", None)
        if _starts_processes(command, launched):
            from tuneval.launch import launch

            for notice in notices:
                console.note(notice)
            return launch(command, words, launched)
        console.quiet(not runtime.is_main())
        for notice in (*notices, *parsed.notices):
            console.note(notice)
        status = _run_here(command, parsed, launched)
        sys.stdout.flush()
        return status
    except UserError as error:
        return _refuse(program, str(error))
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _refuse(program, tell(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _check_flags(command: str, parsed: Parsed) -> None:
    """Hold the command's flags against each other before torch is imported: a slip is told in a fraction of a second."""
    launched = getattr(parsed.config, "launch", None)
    if launched is not None:
        from tuneval import launch
        from tuneval.errors import Problems

        problems = Problems()
        launch.check_flags(launched, problems)
        problems.raise_if_any()
    name = f"tuneval.commands.{command}_flags"
    if find_spec(name) is not None:
        import_module(name).check(parsed.config)


def _refuse(program: str, message: str) -> int:
    from tuneval.errors import tell_torchrun

    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{program}: {message}", file=sys.stderr)
    tell_torchrun(f"{program}: {message}")
    return 2


def _starts_processes(command: str, launched: LaunchConfig | None) -> bool:
    """Whether torchrun has to be started; its flags are checked."""
    from tuneval import launch, runtime
    from tuneval.errors import Problems, UserError

    if launched is None:
        if runtime.world_size() > 1:
            raise UserError(f"{command} runs in one process; start it without torchrun")
        return False
    problems = Problems()
    launch.check_machine(launched, problems)
    problems.raise_if_any()
    return launch.is_needed(launched)


def _run_here(command: str, parsed: Parsed, launched: LaunchConfig | None) -> int:
    """Run a command in this process, together with the others of its job where there are any."""
    from tuneval import runtime

    module = import_module(f"tuneval.commands.{command}")
    if runtime.world_size() == 1:
        return module.main(parsed) or 0
    from tuneval.parallel.peers import joined

    with joined(launched.distributed_timeout_minutes):
        return module.main(parsed) or 0


OF_ENTRIES = ("inference", "evaluation")
"""Commands that entry files stand for; by name only the processes call them that such a file has started."""

POSITIONAL = {"verify": ("--a", "--b"), "download": ("--id",), "report": ("--runs",), "ablate": ("--sweep",)}
"""Commands whose first words may stand without a flag: `tuneval verify A B`, `tuneval report RUN RUN`."""


def positional_as_flags(command: str, arguments: list[str]) -> list[str]:
    names = POSITIONAL.get(command, ())
    words, rest = [], list(arguments)
    for name in names:
        taken = []
        while rest and not rest[0].startswith("-") and (command == "report" or not taken):
            taken.append(rest.pop(0))
        words += [name, *taken] if taken else []
    if command == "verify" and words and not {"--b", "--config"} & {word.partition("=")[0] for word in words + rest}:
        from tuneval.errors import UserError

        raise UserError(f"{words[1]}: one checkpoint; give the other, too: tuneval verify A B")
    return words + rest


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    return f"usage: tuneval COMMAND [flags]      tuneval COMMAND --help lists the flags\n\n{lines}"


if __name__ == "__main__":
    sys.exit(main())
