"""What a run says while it runs: the console and log.txt, metrics.jsonl, validation.jsonl, TensorBoard."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from tuneval import console, runtime
from tuneval.commands.tune_plan import Plan
from tuneval.commands.tune_tensorboard import Board
from tuneval.config.flags import to_dict
from tuneval.files import read_jsonl, write_jsonl
from tuneval.report import records
from tuneval.training import log_line
from tuneval.training.loop import Step

_MEASURED = ("step", "loss", "grad_norm", "lr", "samples", "tokens", "trained_tokens", "seconds", "tokens_per_second")


class RunLog:
    """Writes the run folder's records and Megatron's lines; a context manager. Of many processes, number 0 does.

    Args:
        plan: of the run.
        done: step of the checkpoint that is continued: records of later steps are dropped, they will be computed again
            to the same bits. None: a fresh run, with fresh records.
    """

    def __init__(self, plan: Plan, done: int | None) -> None:
        self.run, self.plan, self.done = Path(plan.config.save.save), plan, done
        self._pending: list[Step] = []
        self._stack = ExitStack()
        self._board = Board(plan.config, plan.source.config)

    def __enter__(self) -> RunLog:
        if not runtime.is_main():
            return self
        self.run.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "validation.jsonl"):
            _drop_rows_after(self.run / name, self.done)
        mode = "w" if self.done is None else "a"
        self._file = self._stack.enter_context(open(self.run / "log.txt", mode, encoding="utf-8"))
        self._bar = self._stack.enter_context(console.progress_bar("tune", self.plan.train_iters, float("inf")))
        self._bar.advance(self.done or 0)
        self._stack.enter_context(self._board)
        if self.plan.config.log.log_format == "megatron":
            for line in (*log_line.argument_lines(to_dict(self.plan.config)), *self._loaded_lines()):
                self.say(line)
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.__exit__(*failure)

    def say(self, line: str) -> None:
        """One line on standard output (where Megatron's scripts look for it) and in log.txt."""
        if not runtime.is_main():
            return
        console.out.print(line, markup=False)
        self._file.write(line + "\n")
        self._file.flush()

    def step(self, step: Step) -> None:
        """Record a step; print the line when it is due."""
        if not runtime.is_main():
            return
        row = {name: getattr(step, name) for name in (*_MEASURED, "peak_memory_bytes")}
        records.append_record(self.run / "metrics.jsonl", records.Step(**row))
        self._pending.append(step)
        self._bar.advance()
        self._bar.describe(f"loss {step.loss:.4f}  lr {step.lr:.2e}  {step.tokens_per_second:.0f} tokens/s")
        self._board.step(step)
        if step.step % self.plan.config.log.log_interval == 0 or step.step == self.plan.train_iters:
            self._iteration_line()

    def validation(self, step: int, loss: float, where: str) -> None:
        """Record and print a validation."""
        if not runtime.is_main():
            return
        perplexity = log_line.perplexity(loss)
        record = records.Validation(step=step, loss=loss, perplexity=perplexity)
        records.append_record(self.run / "validation.jsonl", record)
        self._board.validation(step, loss)
        self.say_validation(loss, where)

    def say_validation(self, loss: float, where: str) -> None:
        for line in log_line.validation_lines(loss, where):
            self.say(line)

    def _iteration_line(self) -> None:
        steps, self._pending = self._pending, []
        tflops = None
        if self.plan.config.log.log_throughput:
            lengths = [n for s in steps for n in s.lengths]
            seconds = sum(s.seconds for s in steps) * runtime.world_size()
            tflops = log_line.step_flops(self.plan.source.config, lengths) / seconds / 1e12
        batch_size = self.plan.config.batch.global_batch_size
        line = log_line.iteration_line(steps, self.plan.train_iters, batch_size, tflops, datetime.now())
        extended = self.plan.config.log.log_format == "extended"
        self.say(line + (log_line.tokens_per_second_field(steps) if extended else ""))

    def _loaded_lines(self) -> list[str]:
        """Megatron's lines about its checkpoint in `--load`; a continued run says its own."""
        iteration = getattr(self.plan.source, "iteration", None)
        if self.done is not None or iteration is None:
            return []
        return log_line.loaded_lines(self.plan.config.model.load, iteration)


def _drop_rows_after(path: Path, step: int | None) -> None:
    """Cut a record file back to a checkpoint's step; remove it where there is none."""
    if step is None:
        path.unlink(missing_ok=True)
    elif path.is_file():
        write_jsonl(path, [row for row in read_jsonl(path) if row["step"] <= step])
