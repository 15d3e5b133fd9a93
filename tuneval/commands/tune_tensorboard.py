"""TensorBoard events of a run, under Megatron's tags and by its flags."""

from __future__ import annotations

from typing import Any

from tuneval import runtime
from tuneval.config.schema import TuneConfig
from tuneval.training import log_line
from tuneval.training.loop import Step


class Board:
    """Writes events; a context manager. Without `--tensorboard-dir` it does nothing.

    Args:
        config: of the run.
        hf_config: of the model, for its floating-point operations.
    """

    def __init__(self, config: TuneConfig, hf_config: Any) -> None:
        self._config, self._hf_config = config, hf_config
        self._writer: Any = None

    def __enter__(self) -> Board:
        folder = self._config.log.tensorboard_dir
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), max_queue=self._config.log.tensorboard_queue_size)
        return self

    def __exit__(self, *failure: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def step(self, step: Step) -> None:
        log = self._config.log
        if self._writer is None or step.step % log.tensorboard_log_interval:
            return
        twice = {"lm loss": None if step.skipped else step.loss, "grad-norm": step.grad_norm}
        if not log.no_log_learning_rate_to_tensorboard:
            twice["learning-rate"] = step.next_lr  # as its log line prints it
        if not log.no_log_loss_scale_to_tensorboard:
            twice["loss-scale"] = step.loss_scale
        if log.log_batch_size_to_tensorboard:
            twice["batch-size"] = self._config.batch.global_batch_size
        if log.log_world_size_to_tensorboard:
            twice["world-size"] = runtime.world_size()
        once = {"tokens per second": step.tokens_per_second}
        if log.log_memory_to_tensorboard:
            once["mem-max-allocated-bytes"] = step.peak_memory_bytes
        if log.log_timers_to_tensorboard:
            once["iteration-time"] = step.seconds
            if log.log_throughput:
                flops = log_line.step_flops(self._hf_config, step.lengths)
                once["throughput"] = flops / step.seconds / 1e12 / runtime.world_size()
        self._write(once, step.step)
        self._write_twice(twice, step.step, step.samples)

    def validation(self, step: int, loss: float) -> None:
        if self._writer is None:
            return
        samples = step * self._config.batch.global_batch_size
        values = {"lm loss validation": loss}
        if self._config.log.log_validation_ppl_to_tensorboard:
            values["lm loss validation ppl"] = log_line.perplexity(loss)
        self._write_twice(values, step, samples)

    def _write_twice(self, values: dict[str, float | None], step: int, samples: int) -> None:
        """Over steps, and over samples."""
        self._write(values, step)
        self._write({f"{tag} vs samples": value for tag, value in values.items()}, samples)

    def _write(self, values: dict[str, float | None], at: int) -> None:
        for tag, value in values.items():
            if value is not None:
                self._writer.add_scalar(tag, value, at)
