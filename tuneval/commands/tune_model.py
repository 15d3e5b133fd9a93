"""What a run trains: the model, or this process's part of it, with its optimizer, and its tensors to be written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from tuneval import runtime
from tuneval.checkpoints.load import load_model, weights_hash
from tuneval.commands.tune_plan import Plan
from tuneval.model.decoder import Decoder, stored_name
from tuneval.model.lora import LoraSettings, add_lora
from tuneval.parallel.apply import parallelize
from tuneval.parallel.mesh import Mesh
from tuneval.training.loop import OneProcess, Runner
from tuneval.training.optim import AdamW, make_optimizer


class TunedModel:
    """Loads the model and makes it ready to train: whole where there is one process, else this process's part.

    Args:
        plan: of the run.
        mesh: the processes.
    """

    def __init__(self, plan: Plan, mesh: Mesh) -> None:
        self.plan, self.mesh = plan, mesh
        lora = plan.config.lora
        self.lora: LoraSettings | None = None
        if lora.enabled:
            targets = lora.lora_target_modules
            self.lora = LoraSettings(lora.rank, lora.alpha, lora.lora_dropout, targets, lora.lora_shared_a)
        self.chunks: Sequence[Decoder]
        """The slices of the model that this process holds."""
        self.runner: Runner
        self.optimizer: AdamW
        self.identity: dict[str, Any]
        """path, kind and weights_sha256 of what `--load` names; on process 0."""
        if mesh.grid is None:
            self._load_whole()
        else:
            self._load_part()

    def _load_whole(self) -> None:
        config = self.plan.config
        loaded = load_model(
            config.model.load, config.precision.dtype, tokenizer_folder=config.model.tokenizer_name_or_path
        )
        if self.lora is not None:
            add_lora(loaded.model, self.lora, config.log.seed, adapter=self.plan.adapter)
        decoder = Decoder(loaded.model, config.precision.recompute_granularity, self.plan.compiles)
        self.identity, self.chunks, self.runner = loaded.identity, [decoder], OneProcess(decoder)
        self.optimizer = make_optimizer(self.runner.named_parameters(), config.optim)

    def _load_part(self) -> None:
        plan, config = self.plan, self.plan.config
        self.identity = {"path": str(config.model.load), "kind": plan.source.kind}
        if runtime.is_main():
            self.identity["weights_sha256"] = weights_hash(plan.source)
        runner = parallelize(
            plan.source.config,
            plan.source,
            self.mesh,
            runtime.DTYPES[config.precision.dtype],
            runtime.device(),
            lora=self.lora,
            seed=config.log.seed,
            adapter=plan.adapter,
            recompute=config.precision.recompute_granularity,
            compile=plan.compiles,
        )
        self.chunks, self.runner = runner.chunks, runner
        self.optimizer = make_optimizer(runner.named_parameters(), config.optim, runner.gradients())

    def tensors(self) -> dict[str, torch.Tensor]:
        """What this process holds, by the checkpoint's names; adapters by their parameters'. Views, not copies."""
        config = self.plan.source.config
        return {stored_name(config, n): t for chunk in self.chunks for n, t in chunk.state_dict().items()}

    def parameter_counts(self) -> dict[str, int]:
        """Parameters of the whole model, every one once: `total` and `trainable`. Every process must call it."""
        mine = {name: (p.numel(), p.requires_grad) for name, p in self.runner.named_parameters()}
        everyone = [mine]
        if self.mesh.grid is not None:
            everyone = [{} for _ in range(self.mesh.layout.world_size)]
            dist.all_gather_object(everyone, mine)
        counts = {name: count for each in everyone for name, count in each.items()}
        return {
            "total": sum(number for number, _ in counts.values()),
            "trainable": sum(number for number, trained in counts.values() if trained),
        }
