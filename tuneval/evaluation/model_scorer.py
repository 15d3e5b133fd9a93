"""A loaded model as the evaluation sees it: prompts to token ids, then letters, options or replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

from tuneval.checkpoints.load import Loaded
from tuneval.data.records import Conversation, Message
from tuneval.data.template import Template
from tuneval.errors import Problems, UserError
from tuneval.evaluation import score
from tuneval.evaluation.decisions import Progress, Prompt
from tuneval.evaluation.replies import replies


class ModelScorer:
    """The `Scorer` of a real model.

    Args:
        loaded: the model.
        decoder: its packed forward.
        template: its chat template; None: it has none, or it is not to be used.
        batch_tokens: tokens of one forward pass at most.
    """

    def __init__(self, loaded: Loaded, decoder: Any, template: Template | None, batch_tokens: int) -> None:
        self._loaded, self._decoder, self._template = loaded, decoder, template
        self._tokenizer, self._batch_tokens = loaded.tokenizer, batch_tokens

    def letters(self, prompts: Sequence[Prompt], targets: Sequence[str], scored: Progress) -> list[list[float]]:
        encoded = [self.encode(p) for p in prompts]
        ids = self.letter_ids(prompts[0], targets)
        names = [p.name for p in prompts]
        return score.letter_logits(self._decoder, encoded, ids, self._batch_tokens, names, scored)

    def options(
        self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]], scored: Progress
    ) -> list[list[tuple[float, int]]]:
        encoded, starts = [], []
        for prompt, texts in zip(prompts, options, strict=True):
            rows = [self.encode(prompt, text) for text in texts]
            # Spaces at the end of a prompt join with the option's first word in one token.
            bare = self.encode(Prompt(text=prompt.text.rstrip(" "))) if prompt.text else self.encode(prompt)
            starts.append(max(1, min(_common(bare, row) for row in rows)))
            encoded.append(rows)
        names = [p.name for p in prompts]
        found = score.option_log_probabilities(
            self._decoder, encoded, starts, self._batch_tokens, names, scored
        )  # fmt: skip
        return [
            [(value, len(ids) - start) for value, ids in zip(values, rows)]
            for values, rows, start in zip(found, encoded, starts)
        ]

    def replies(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        stops: Sequence[str],
        settled: Callable[[str], bool],
        scored: Progress,
    ) -> list[str]:
        encoded, names = [self.encode(p) for p in prompts], [p.name for p in prompts]
        turn = self._template.stop_token_ids if self._template is not None else ()
        own = {self._tokenizer.eos_token_id, *turn} - {None}
        return replies(
            self._loaded, encoded, max_new_tokens, sorted(own), stops, settled, self._batch_tokens, names, scored
        )  # fmt: skip

    def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        """Token ids of a prompt, with the answer's text behind it where one is given."""
        if not prompt.messages:
            return list(self._tokenizer(prompt.text + answer)["input_ids"])
        if not prompt.opens_answer:
            assert not answer, "a conversation without generation prompt has no place for an answer"
            if not getattr(self._tokenizer, "chat_template", None):
                raise UserError(
                    "this style needs the tokenizer's own chat template, and it has none; give --no-chat-template"
                )
            rows = [{"role": m.role, "content": m.content} for m in prompt.messages]
            text = self._tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=False)
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if self._template is None:
            raise UserError(
                "this style talks to the model through its chat template, and the model has none; give --prompt-type, or "
                "a --style of plain text"
            )
        if not answer:
            return self._template.prompt_ids(prompt.messages)
        whole = (*prompt.messages, Message("assistant", answer))
        encoded = self._template.encode(Conversation(whole, 0))
        end = next(i for i in range(len(encoded.labels), 0, -1) if encoded.labels[i - 1] >= 0)
        stop = encoded.input_ids[end - 1] in self._template.stop_token_ids
        return encoded.input_ids[: end - 1 if stop else end]

    def letter_ids(self, prompt: Prompt, targets: Sequence[str]) -> list[int]:
        """The token of each target as it follows `prompt`, by tokenizing both together.

        Raises:
            UserError: a target is no single token there, changes the prompt's own tokens, or shares its token with another.
        """
        problems, before, found = Problems(), self.encode(prompt), []
        for target in targets:
            after = self.encode(prompt, target)
            if len(after) == len(before) + 1 and after[:-1] == before:
                found.append(after[-1])
            else:
                at = len(before) - 2
                problems.add(
                    f"{prompt.name}: answer {target!r} after {_end(prompt)!r}: not one token of its own with this tokenizer (tokens "
                    f"{before[at:]} become {after[at:]}); choose another --style, and check that the tokenizer adds no "
                    "end-of-sequence token (add_eos_token in tokenizer_config.json)"
                )
        problems.raise_if_any()
        if len(set(found)) < len(found):
            raise UserError(
                f"answers {', '.join(targets)}: tokens {found} are not distinct; is it the model's tokenizer?"
            )
        return found


def _end(prompt: Prompt) -> str:
    return (prompt.text or prompt.messages[-1].content)[-6:]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))
