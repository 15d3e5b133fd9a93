"""A command line as flags with their words, to be put into another command's."""

from __future__ import annotations

from tuneval.config.flags import flag_words, normalise
from tuneval.errors import UserError


class Words:
    """A command line by flags; of a flag given twice the last counts, as with argparse."""

    def __init__(self, arguments: list[str]) -> None:
        self.flags: dict[str, list[str]] = {}
        self.notices: list[str] = []
        name = None
        for word in normalise(arguments):
            if word.startswith("--"):
                name, equals, value = word.removeprefix("--").partition("=")
                self.flags.pop(name, None)
                self.flags[name] = [value] if equals else []
            elif name is None:
                raise UserError(f"{word}: not a flag, and no flag before it takes it")
            else:
                self.flags[name].append(word)

    def __contains__(self, name: str) -> bool:
        return name in self.flags

    def value(self, name: str, default: str | None = None) -> str | None:
        """The flag's value, its words joined."""
        return " ".join(self.flags[name]) if self.flags.get(name) else default

    def take(self, name: str, default: str | None = None) -> str | None:
        """The flag's value; the flag is gone afterwards."""
        value = self.value(name, default)
        self.flags.pop(name, None)
        return value

    def drop(self, *names: str) -> list[str]:
        """Take flags out; returns those that were there, as typed."""
        return [f"--{name}" for name in names if self.flags.pop(name, None) is not None]

    def give(self, name: str, *values: object) -> None:
        """Set a flag, in the place of an earlier value."""
        self.flags[name] = [str(value) for value in values]

    def default(self, name: str, *values: object) -> None:
        """Set a flag where it was not given."""
        if name not in self.flags:
            self.give(name, *values)

    def rename(self, name: str, new: str) -> None:
        """Move a flag's words to another name."""
        if name in self.flags:
            self.flags[new] = self.flags.pop(name)

    def without_effect(self, why: str, *names: str) -> None:
        """Take out flags that change nothing, and say why."""
        given = self.drop(*names)
        if given:
            self.note(f"{', '.join(given)}: no effect, {why}")

    def note(self, text: str) -> None:
        self.notices.append(text)

    def flat(self) -> list[str]:
        return [word for name, values in self.flags.items() for word in flag_words(name, values)]
