"""A model over many processes: what is done to it, in one order, and the runner that trains and evaluates it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig

from tuneval.data.batches import GlobalBatch, MicroBatch
from tuneval.model.adapter import Adapter
from tuneval.model.build import empty_model
from tuneval.model.decoder import Decoder, check_architecture, cut_stage, stored_name
from tuneval.model.lora import LoraSettings, initial_value, inject_lora
from tuneval.model.loss import hidden_loss, sequence_loss
from tuneval.parallel.data import keep_whole_until, reshard, shard
from tuneval.parallel.gradients import Gradients
from tuneval.parallel.mesh import Mesh
from tuneval.parallel.micro_batches import alike
from tuneval.parallel.pipeline import Pipeline
from tuneval.parallel.tensor import tensor_parallel
from tuneval.parallel.weights import Weights, fill


def parallelize(
    hf_config: PretrainedConfig,
    source: Weights,
    mesh: Mesh,
    dtype: torch.dtype,
    device: torch.device,
    lora: LoraSettings | None = None,
    seed: int = 0,
    adapter: Adapter | None = None,
    recompute: Literal["full", "selective"] | None = None,
    compile: bool = False,
) -> ParallelRunner:
    """Make this process's part of a model, and read its weights: no process ever holds more.

    Args:
        hf_config: of the model.
        source: checkpoint in Hugging Face's names.
        mesh: the processes.
        dtype: of the weights.
        device: where they go.
        lora: adapters to train; None: train everything.
        seed: of the adapters' first values.
        adapter: one trained before, whose values they start from instead.
        recompute: as in `Decoder`.
        compile: as in `Decoder`; of layers that no mesh cuts.

    Raises:
        UserError: the architecture can't be spread so, or the checkpoint does not fit it.
    """
    check_architecture(hf_config)
    layout, chunks = mesh.layout, []
    for number in layout.chunks_of(mesh.stage):
        first, last = number == 0, number == len(layout.layers) - 1
        model = cut_stage(empty_model(hf_config, dtype), layout.layers[number], first, last)
        if lora is not None:
            inject_lora(model, lora)
        if layout.tensor > 1:
            tensor_parallel(model, mesh.tp, layout.sequence_parallel)
        decoder = Decoder(model, recompute, compile)
        if layout.sharding != "none":
            shard(decoder, mesh.dp, full=layout.sharding == "full")
        fill(
            model,
            source,
            stored=lambda name: stored_name(hf_config, name.replace(".base_layer.", ".")),
            fresh=lambda name, shape: initial_value(name, shape, seed, adapter),
            dtype=dtype,
            device=device,
        )
        chunks.append(decoder)
    return ParallelRunner(chunks, mesh, hf_config, dtype, device)


class ParallelRunner:
    """Runs global batches through this process's part of a model, together with the others.

    Args:
        chunks: the slices this process holds.
        mesh: the processes.
        hf_config: of the whole model.
        dtype: of the weights.
        device: where they are.
    """

    def __init__(
        self,
        chunks: Sequence[Decoder],
        mesh: Mesh,
        hf_config: PretrainedConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.chunks, self.mesh, self.hf_config, self.device = list(chunks), mesh, hf_config, device
        self.pipeline: Pipeline | None = None
        if mesh.layout.pipeline > 1:
            self.pipeline = Pipeline(self.chunks, mesh.layout, mesh.pp.get_group(), device, dtype)

    def accumulate(self, batch: GlobalBatch, scale: float) -> float:
        for chunk in self.chunks:
            chunk.train()
        return self._run(batch, scale, train=True)

    @torch.no_grad()
    def evaluate(self, batch: GlobalBatch) -> float:
        modes = [chunk.training for chunk in self.chunks]
        for chunk in self.chunks:
            chunk.eval()
        loss = self._run(batch, 1.0, train=False)
        for chunk, training in zip(self.chunks, modes):
            chunk.train(training)
            reshard(chunk)
        return loss

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for chunk in self.chunks:
            for name, parameter in chunk.named_parameters():
                yield stored_name(self.hf_config, name), parameter

    def broken_parameters(self) -> list[str]:
        mine = [name for name, p in self.named_parameters() if not bool(torch.isfinite(_local(p)).all())]
        everyone: list[list[str]] = [[] for _ in range(self.mesh.layout.world_size)]
        dist.all_gather_object(everyone, mine)
        return list(dict.fromkeys(name for names in everyone for name in names))

    def gradients(self) -> Gradients:
        """What the optimizer sums and measures gradients with."""
        tied = stored_name(self.hf_config, "lm_head.weight")
        trained = any(p.requires_grad for name, p in self.named_parameters() if name == tied)
        shared = self.hf_config.tie_word_embeddings and self.mesh.layout.pipeline > 1
        return Gradients(self.mesh, tied if shared and self._anywhere(trained) else None)

    def _anywhere(self, flag: bool) -> bool:
        found = torch.tensor(int(flag))
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def _run(self, batch: GlobalBatch, scale: float, train: bool) -> float:
        """Every micro-batch of this process's share; returns the global loss."""
        layout, mesh = self.mesh.layout, self.mesh
        at_least = batch.most_micro_batches if layout.sharding != "none" else 1
        if self.pipeline is not None:
            losses = self.pipeline.step(batch.micro_batches, hidden_loss, scale, train, at_least) or []
        else:
            losses = self._run_here(self._padded(batch.micro_batches, at_least), scale, train)
        total = torch.tensor(sum(losses) if mesh.tp_rank == 0 else 0.0, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total)

    def _run_here(self, micro_batches: list[MicroBatch], scale: float, train: bool) -> list[float]:
        """Without stages: forward and, in training, backward of each."""
        (decoder,) = self.chunks
        losses = []
        for number, micro_batch in enumerate(micro_batches, 1):
            if train and self.mesh.layout.sharding == "optimizer":
                keep_whole_until(decoder, last=number == len(micro_batches))
            loss = sequence_loss(decoder, micro_batch.to(self.device))
            if train:
                (loss * scale).backward()
            losses.append(loss.detach())
            del loss  # as in one process: its graph would scatter over the next one's memory
        return [float(loss) for loss in losses]

    def _padded(self, micro_batches: Sequence[MicroBatch], at_least: int) -> list[MicroBatch]:
        """As many as the other data-parallel processes have, where they meet in each; of lengths that SP can split."""
        layout = self.mesh.layout
        multiple = layout.tensor if layout.sequence_parallel else 1
        padded = [m if m.input_ids.shape[1] % multiple == 0 else alike([m], 1, multiple)[0] for m in micro_batches]
        return padded + [alike([], 1, multiple)[0] for _ in range(at_least - len(padded))]


def _local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
