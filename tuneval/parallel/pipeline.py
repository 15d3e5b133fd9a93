"""Pipeline parallelism: each process runs its layers, and torch.distributed.pipelining carries what lies between them.

Shapes: T tokens of a micro-batch, H hidden size. Between stages go [1, T, H], with sequence parallelism [1, T / TP, H].
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import lcm

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from tuneval import runtime
from tuneval.data.batches import MicroBatch
from tuneval.model.decoder import Decoder
from tuneval.parallel.data import keep_whole_until
from tuneval.parallel.mesh import Layout
from tuneval.parallel.micro_batches import alike, needed

Loss = Callable[[Decoder, torch.Tensor, MicroBatch], torch.Tensor]
"""(last slice, its hidden states [1, T, H], micro-batch) -> fp32 scalar."""


class Pipeline:
    """The stage of this process in a pipeline of them.

    Args:
        chunks: the slices this process holds, in the order of `layout.chunks_of`, adapters and shards included.
        layout: sizes, schedule.
        group: the processes of this pipeline, first stage first.
        device: where the chunks compute.
        dtype: of the hidden states that go from stage to stage.
    """

    def __init__(
        self,
        chunks: Sequence[Decoder],
        layout: Layout,
        group: dist.ProcessGroup,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        runtime.mend_pipelining()
        self.layout, self.group, self.device, self.dtype = layout, group, device, dtype
        self.stage = dist.get_rank(group)
        self.chunks = dict(zip(layout.chunks_of(self.stage), map(_Chunk, chunks), strict=True))

    def step(
        self,
        micro_batches: Sequence[MicroBatch],
        loss_fn: Loss,
        scale: float = 1.0,
        train: bool = True,
        at_least: int = 1,
    ) -> list[float] | None:
        """Run a step's micro-batches through all stages, forward and, in training, backward.

        Every process of the pipeline calls it with the same arguments. Gradients are those of the sum of the losses.

        Args:
            micro_batches: of this pipeline's share of the global batch.
            loss_fn: of the last stage.
            scale: factor of the gradients.
            train: False: forward only, to be called without gradients.
            at_least: micro-batches to make; data-parallel pipelines that meet in a collective need equally many.

        Returns:
            Loss of each micro-batch, as they were dealt out, on the last stage; None on the others.
        """
        layout = self.layout
        count = needed(max(len(micro_batches), at_least), layout, train)
        rows = alike(micro_batches, count, lcm(8, layout.tensor if layout.sequence_parallel else 1))
        stages = [self._make_stage(number, rows[0].input_ids.shape[1], train) for number in self.chunks]
        for chunk in self.chunks.values():
            chunk.start(rows, loss_fn, self.device)
        schedule = self._make_schedule(stages, count, scale if train else None)
        losses: list[torch.Tensor] = []
        if train:
            schedule.step(target=torch.arange(count), losses=losses)
        else:
            outputs = schedule.step()  # [count] on the last stage
            losses = [] if outputs is None else list(outputs)
        for chunk in self.chunks.values():
            chunk.finish()
        if not any(stage.is_last for stage in stages):
            return None
        return [float(loss) / (scale if train else 1.0) for loss in losses]

    def _make_stage(self, number: int, length: int, train: bool) -> _Stage:
        """A stage object for one step: its shapes are fixed, and the next step's micro-batches have others.

        In training every chunk hands on a gradient: each holds a layer, and of each layer something is trained.
        """
        chunk, layout = self.chunks[number], self.layout
        tokens = length // layout.tensor if layout.sequence_parallel else length
        shape = (1, tokens, chunk.decoder.config.hidden_size)
        hidden = torch.empty(shape, dtype=self.dtype, device="meta", requires_grad=train)
        loss = torch.empty(1, device="meta", requires_grad=train)
        stage = _Stage(
            chunk,
            number,
            len(layout.layers),
            self.device,
            input_args=() if number == 0 else (hidden,),
            output_args=(loss if number == len(layout.layers) - 1 else hidden,),
            group=self.group,
        )
        stage.sums_at_the_end = layout.sharding == "optimizer"
        return stage

    def _make_schedule(self, stages: list[_Stage], count: int, scale: float | None):
        """The schedule of one step; without a scale it runs forward only."""
        interleaved = self.layout.chunks_per_stage > 1
        one_by_one = Schedule1F1B if self.layout.schedule == "1f1b" and scale is not None else ScheduleGPipe
        kind = ScheduleInterleaved1F1B if interleaved else one_by_one
        loss_fn = None if scale is None else lambda loss, _: loss[0] * scale
        # Dividing gradients by the number of micro-batches is what older versions don't do and newer ones do unasked.
        options = {"scale_grads": False} if "scale_grads" in inspect.signature(kind).parameters else {}
        return kind(stages if interleaved else stages[0], count, loss_fn=loss_fn, **options)


class _Chunk(torch.nn.Module):
    """What a stage calls: the slice, fed with the micro-batch whose turn it is; the last one ends in the loss."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.finish()

    def start(self, rows: Sequence[MicroBatch], loss_fn: Loss, device: torch.device) -> None:
        self.rows, self.loss_fn, self.device = rows, loss_fn, device

    def finish(self) -> None:
        self.rows: Sequence[MicroBatch] = ()
        self.turn = 0

    def forward(self, hidden: torch.Tensor | None = None) -> torch.Tensor:
        micro_batch = self.rows[self.turn].to(self.device)
        inputs = micro_batch.input_ids if hidden is None else hidden
        outputs = self.decoder(inputs, micro_batch.position_ids, micro_batch.segments)
        if not self.decoder.is_last:
            return outputs.contiguous()
        return self.loss_fn(self.decoder, outputs, micro_batch).float()[None].clone()  # a view could not be detached


class _Stage(PipelineStage):
    """torch's stage, with memory for the micro-batches under way only.

    torch allocates what it will receive for all micro-batches of the step at once. Here the tensors it makes lie on `meta`
    and become real when they are awaited.
    """

    sums_at_the_end = False
    """Whether FSDP's modules keep whole weights and gradients until the step's last backward pass."""

    def _prepare_forward_infra(self, *args, **kwargs):
        with self._on_meta():
            return super()._prepare_forward_infra(*args, **kwargs)

    def _prepare_backward_infra(self, *args, **kwargs):
        with self._on_meta():
            return super()._prepare_backward_infra(*args, **kwargs)

    @contextmanager
    def _on_meta(self) -> Iterator[None]:
        device, self.device = self.device, torch.device("meta")
        try:
            yield
        finally:
            self.device = device

    def get_fwd_recv_ops(self, fwd_chunk_id: int):
        self._allocate(self.args_recv_info[fwd_chunk_id])
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int):
        if not self.has_backward or self.is_last:
            return []
        self._allocate(self.grad_recv_info[bwd_chunk_id])
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def get_fwd_send_ops(self, fwd_chunk_id: int):
        operations = super().get_fwd_send_ops(fwd_chunk_id)
        if not self.is_last and not self.has_backward:
            self.fwd_cache.pop(fwd_chunk_id)
        if not self.is_last and self.output_chunks:  # torch 2.5 keeps what is sent until the next step
            self.output_chunks[fwd_chunk_id] = None
        return operations

    def get_bwd_send_ops(self, bwd_chunk_id: int):
        return super().get_bwd_send_ops(bwd_chunk_id) if self.has_backward else []

    def forward_one_chunk(self, fwd_chunk_id: int, *args, **kwargs):
        self.submod.turn = fwd_chunk_id
        output = super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)
        self._release(self.args_recv_info[fwd_chunk_id])
        return output

    def backward_one_chunk(self, bwd_chunk_id: int, loss: torch.Tensor | None = None, **kwargs):
        if not self.has_backward:
            return
        if self.sums_at_the_end:
            keep_whole_until(self.submod.decoder, last=bwd_chunk_id == self.chunks - 1)
        super().backward_one_chunk(bwd_chunk_id, loss=loss, **kwargs)
        self._release(self.grad_recv_info[bwd_chunk_id])
        if self.is_last:  # torch keeps losses until the end of the step, and with them their graphs and inputs
            loss.detach_()
            self.output_chunks[bwd_chunk_id].detach_()

    def _allocate(self, infos) -> None:
        for info in infos:
            if getattr(info, "buffer", None) is not None:
                info.buffer = torch.empty_like(info.buffer, device=self.device)

    def _release(self, infos) -> None:
        for info in infos:
            if getattr(info, "buffer", None) is not None:
                info.buffer = torch.empty_like(info.buffer, device="meta")
