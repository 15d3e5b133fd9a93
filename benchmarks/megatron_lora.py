"""LoRA rank files against the real megatron-core with peft's own LoRA layers for it, both ways, on a CPU.

    pip install --no-deps --target DIR megatron-core==0.12.1 peft==0.12.0
    PYTHONPATH=DIR torchrun --nproc_per_node 2 benchmarks/megatron_lora.py

(peft 0.15.2 and 0.21.2 can't make their Megatron layers: they look for keys that they do not set.)

Writes a tiny model with an adapter as rank files at the TP size of the world, loads them into a real GPTModel with real
`LoraParallelLinear`s and compares its logits with peft's on the Hugging Face model. Then the other way: what that GPTModel saves is
read, merged and compared. Prints missing and left-over keys and the largest difference of a logit.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests" / "checkpoints")]

IDS = torch.tensor([[3, 141, 59, 26, 53, 58, 97, 93, 23, 84]])


def main() -> None:
    dist.init_process_group("gloo")
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(folder)
    for name in ("shared", "separate"):
        compare(Path(folder[0]) / name, name)
    dist.destroy_process_group()


def compare(folder: Path, name: str) -> None:
    tp, rank = dist.get_world_size(), dist.get_rank()
    if rank == 0:
        write_ours(folder, name, tp)
    dist.barrier()
    expected = torch.load(folder / "logits.pt")
    state = torch.load(folder / f"ours/iter_0000001/mp_rank_{rank:02d}/model_optim_rng.pt", weights_only=False)
    model = megatron_model(state["args"], tp)
    own = {key for key, value in model.state_dict().items() if value is not None and "_extra_state" not in key}
    model.load_state_dict(state["model"], strict=False)
    say(f"{name}, TP {tp}: missing {sorted(own - set(state['model']))}, left over {sorted(set(state['model']) - own)}")
    say(f"{name}, TP {tp}: ours in Megatron, largest difference {difference(logits(model), expected):.1e}")
    with torch.no_grad():
        for key, value in model.named_parameters():
            if ".lora_B." in key:
                value.mul_(-1.5)  # another adapter than the one that was read
    theirs = folder / f"theirs/iter_0000007/mp_rank_{rank:02d}"
    theirs.mkdir(parents=True)
    saved = {"args": state["args"], "checkpoint_version": 3.0, "iteration": 7, "model": model.state_dict()}
    torch.save(saved, theirs / "model_optim_rng.pt")
    dist.barrier()
    after = logits(model)
    if rank == 0:
        say(f"{name}, TP {tp}: Megatron's read by us, largest difference {difference(read_theirs(folder), after):.1e}")
    dist.barrier()


def write_ours(folder: Path, name: str, tp: int) -> None:
    from test_megatron_lora import SEPARATE, SHARED, adapted, peft_logits, write

    folder.mkdir()
    hf, adapter = adapted(folder, SHARED if name == "shared" else SEPARATE)
    write(hf, adapter, folder / "ours", (tp, 1, None))
    torch.save(peft_logits(hf, adapter), folder / "logits.pt")


def read_theirs(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    from tuneval.checkpoints.convert import to_hf
    from tuneval.checkpoints.load import open_source

    to_hf(open_source(folder / "theirs", folder / "hf"), folder / "back")
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder / "back").eval()(IDS).logits


def megatron_model(args: argparse.Namespace, tp: int) -> torch.nn.Module:
    """A real GPTModel with peft's adapters in its parallel layers; only what insists on a CUDA device is put aside."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer.transformer_config import TransformerConfig
    from peft import LoraConfig, inject_adapter_in_model

    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp)
    random.CudaRNGStatesTracker.fork = contextlib.contextmanager(lambda self, name="": (yield))
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.Tensor.cuda = lambda self, *_, **__: self
    config = TransformerConfig(
        num_layers=args.num_layers, hidden_size=args.hidden_size, ffn_hidden_size=args.ffn_hidden_size,
        num_attention_heads=args.num_attention_heads, num_query_groups=args.num_query_groups, kv_channels=args.kv_channels,
        add_bias_linear=False, add_qkv_bias=args.add_qkv_bias, gated_linear_unit=True, activation_func=F.silu,
        normalization="RMSNorm", layernorm_epsilon=args.norm_epsilon, hidden_dropout=0.0, attention_dropout=0.0,
        tensor_model_parallel_size=tp, params_dtype=torch.float32, use_cpu_initialization=True, perform_initialization=False,
        bias_activation_fusion=False, masked_softmax_fusion=False, gradient_accumulation_fusion=False, apply_rope_fusion=False,
    )  # fmt: skip
    model = GPTModel(
        config, get_gpt_layer_local_spec(normalization="RMSNorm"), args.padded_vocab_size, max_sequence_length=512,
        position_embedding_type="rope", rotary_base=args.rotary_base,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
    )  # fmt: skip
    lora = LoraConfig(
        r=args.lora_r, lora_alpha=args.lora_alpha, target_modules=list(args.lora_target_modules), megatron_config=config,
        megatron_core="megatron.core",
    )  # fmt: skip
    inject_adapter_in_model(lora, model, "default")
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    n = IDS.shape[1]
    mask = torch.triu(torch.ones(1, 1, n, n), 1).bool()
    return gather_from_tensor_model_parallel_region(model(IDS, torch.arange(n)[None], mask))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    main()
