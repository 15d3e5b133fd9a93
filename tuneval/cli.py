"""`tuneval COMMAND ...`: finds the command's file and runs it. Imports nothing heavy before it must."""

from __future__ import annotations

import difflib
import sys
from importlib import import_module

COMMANDS = {
    "quickstart": "the whole way on a tiny model, offline, in minutes",
    "doctor": "check this machine: versions, device, what is missing",
    "download": "fetch a model or tokenizer into a folder",
    "convert": "Hugging Face <-> Megatron, any TP x PP layout",
    "verify": "prove two checkpoints equal",
    "preprocess": "instruction records -> token files",
    "inspect": "show what a token file holds",
    "tune": "supervised fine-tuning, full or LoRA",
    "chat": "chat with a model in the terminal",
    "generate": "answer one prompt, or a file of prompts",
    "evaluate": "score a model on an exam; compare two results",
    "report": "one self-contained page from run folders",
    "export": "take a tuned model out of its run folder",
}
"""Command -> one line. `tuneval/commands/<command>.py` holds `CONFIG`, its schema class, and `main(parsed)`."""


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
    if command not in COMMANDS:
        nearest = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        print(f"tuneval: unknown command {command}{hint}\n\n{usage()}", file=sys.stderr)
        return 2
    return run(command, rest)


def run(command: str, arguments: list[str]) -> int:
    """Parse the command's flags and run it. Also what the entry files with MindSpeed-LLM's names call."""
    from tuneval.errors import UserError

    try:
        from tuneval.config import flags, schema

        config_type = getattr(schema, f"{command.capitalize()}Config")
        parsed = flags.parse(config_type, positional_as_flags(command, arguments), program=f"tuneval {command}")
        from tuneval import console, runtime

        runtime.prepare()
        for notice in parsed.notices:
            console.note(notice)
        return import_module(f"tuneval.commands.{command}").main(parsed) or 0
    except UserError as error:
        print(f"tuneval {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


POSITIONAL = {"verify": ("--a", "--b"), "download": ("--id",), "report": ("--runs",)}
"""Commands whose first words may stand without a flag: `tuneval verify A B`, `tuneval report RUN RUN`."""


def positional_as_flags(command: str, arguments: list[str]) -> list[str]:
    names = POSITIONAL.get(command, ())
    words, rest = [], list(arguments)
    for name in names:
        taken = []
        while rest and not rest[0].startswith("-") and (command == "report" or not taken):
            taken.append(rest.pop(0))
        words += [name, *taken] if taken else []
    return words + rest


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    return f"usage: tuneval COMMAND [flags]      tuneval COMMAND --help lists the flags\n\n{lines}"


if __name__ == "__main__":
    sys.exit(main())
