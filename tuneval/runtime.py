"""The machine: device, seeds, allocator, versions. Imports that depend on a version or a device live here alone."""

from __future__ import annotations

import ctypes
import inspect
import logging
import math
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from tuneval.cores import usable_cores
from tuneval.wide_products import multiplies, widen_products

# It warns of kernels for 4-bit products, which nothing here uses, as soon as peft, wherever it is installed, imports it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# It warns of a home folder where it can keep no list of fonts, which no figure here needs.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def device() -> torch.device:
    """The accelerator torch finds, or the CPU. An Ascend NPU shows itself once `torch_npu` is imported."""
    if find_spec("torch_npu") is not None:
        import_module("torch_npu")
    if not hasattr(torch, "accelerator"):  # torch < 2.6, as in the Ascend stack of 2025
        kinds = ("npu", "cuda")
        return next(
            (torch.device(k) for k in kinds if hasattr(torch, k) and getattr(torch, k).is_available()),
            torch.device("cpu"),
        )
    # Not `current_accelerator(check_available=True)`, which torch 2.6 does not know.
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def world_size() -> int:
    """Processes of this job; 1 where no torchrun (nor a scheduler that sets its variables) started this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Number of this process in the job, from 0."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def local_rank() -> int:
    """Number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that talks to the user and writes records."""
    return rank() == 0


def accelerator_count() -> int | None:
    """Accelerators of this machine; None where tensors live on the CPU."""
    kind = device().type
    return None if kind == "cpu" else getattr(torch, kind).device_count()


def select_accelerator() -> None:
    """Give this process the accelerator of its local rank, where there are any."""
    kind = device().type
    if kind != "cpu":
        getattr(torch, kind).set_device(local_rank())


def communication_backend() -> str:
    """torch.distributed's backends: gloo for tensors on the CPU, the device's own for the others."""
    kind = device().type
    own = {"cuda": "nccl", "npu": "hccl", "xpu": "xccl"}.get(kind)
    return f"cpu:gloo,{kind}:{own}" if own else "gloo"


def prepare() -> None:
    """Settings that make a process fast and predictable; called once, by the command line."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # torch asks Linux for pages of 2 MiB then: full tuning of the 0.5B model on two cores 180 -> 210 tokens/s.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # oneDNN and torch keep 1,024 kernels each, and every length of a micro-batch needs some 30 new ones, half a megabyte
    # each that also lie between the activations: 1.4 GB after 500 steps. Making them anew takes 0.3 % of a step.
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "64")
    _keep_freed_memory()
    widen_products()


def _keep_freed_memory() -> None:
    """Raise glibc's mmap and trim thresholds so that freed activations are reused, not returned page by page.

    Measured on the 0.5B model on two cores: 207 -> 273 tokens/s of LoRA tuning. What is larger than any activation goes back:
    full tuning's gradients of a vocabulary leave holes that glibc does not fill again, a quarter of a gigabyte more each step.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    libc.mallopt(mmap_threshold, 1 << 27)
    libc.mallopt(trim_threshold, 1 << 30)


def one_device(index: int, environment: dict[str, str]) -> dict[str, str]:
    """Environment variables that show a child process one accelerator of those that `environment` shows; {} on a CPU.

    Args:
        index: which one; counted through again where there are fewer.
        environment: of the child so far.
    """
    kind = device().type
    variable = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}.get(kind)
    if variable is None:
        return {}
    shown = environment.get(variable)
    names = shown.split(",") if shown else [str(i) for i in range(getattr(torch, kind).device_count())]
    return {variable: names[index % len(names)]}


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def has_fused_optimizer(device: torch.device) -> bool:
    """Whether torch's optimizers have their one-pass kernel on a device."""
    from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

    return device.type in _get_fused_kernels_supported_devices()


def fused_optimizer_scales(device: torch.device) -> bool:
    """Whether that kernel divides the gradients by the `grad_scale` it is handed; where it does not, none would be clipped.

    Ascend's takes it and does not look at it; Apple's was like that until 2026.
    """
    return device.type in ("cpu", "cuda") and has_fused_optimizer(device)


def varlen_attention(device: torch.device) -> Callable[..., torch.Tensor] | None:
    """torch's flash attention over samples of any lengths in one row, in bf16 or fp16; None where there is none.

    It needs torch 2.11 and an Ampere GPU or newer. `torch.backends.cuda.enable_flash_sdp(False)` switches it off.
    """
    if device.type != "cuda" or not torch.backends.cuda.flash_sdp_enabled():
        return None
    return _varlen_attention(device)


@lru_cache(maxsize=8)
def _varlen_attention(device: torch.device) -> Callable[..., torch.Tensor] | None:
    if torch.cuda.get_device_capability(device) < (8, 0) or not torch.backends.cuda.is_flash_attention_available():
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    takes = inspect.signature(varlen_attn).parameters
    if "window_size" not in takes:  # torch 2.10: neither windows nor a scale
        return None
    return partial(varlen_attn, enable_gqa=True) if "enable_gqa" in takes else varlen_attn


def missing_compiler() -> str | None:
    """What torch.compile lacks on this device: for a CPU a C++ compiler and Python's headers, elsewhere triton; None: nothing."""
    if device().type != "cpu":
        return None if find_spec("triton") else "triton"
    compiler = shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))
    if compiler is None:
        return "a C++ compiler (g++, or the one that CXX names)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python's headers (python3-dev)"
    return None


def fp32_advantage(dtype: torch.dtype, *, trains: bool) -> float:
    """How many times as fast the CPU multiplies fp32 matrices as matrices of `dtype`; takes a fraction of a second.

    Far above 1 where the processor has no unit for the type and torch is too old for `wide_products`.

    Args:
        trains: the backward pass's products count, too. They can be much slower than a linear layer's own.
    """
    seconds = {dtype: math.inf, torch.float32: math.inf}
    for _ in range(6):  # in turns: what else the machine does meets both; the first makes kernels
        for kind, fastest in seconds.items():
            a, b = torch.ones(512, 512, dtype=kind), torch.ones(512, 512, dtype=kind)
            started = time.perf_counter()
            torch.nn.functional.linear(a, b)
            if trains:
                a @ b
            seconds[kind] = min(fastest, time.perf_counter() - started)
    return seconds[dtype] / seconds[torch.float32]


def packs_linear(weight: torch.Tensor) -> bool:
    """Whether this CPU multiplies faster with `weight` laid out beforehand: bf16, by oneDNN or, without a unit for it, FBGEMM.

    FBGEMM keeps fp16, which has more digits than bf16 and a smaller range: weights beyond it stay as they are.
    """
    if weight.dtype != torch.bfloat16:
        return False
    return multiplies(torch.bfloat16) or (
        "fbgemm" in torch.backends.quantized.supported_engines and _in_fp16s_range(weight)
    )


def _in_fp16s_range(weight: torch.Tensor) -> bool:
    least, most = weight.aminmax()
    return max(-least.item(), most.item()) <= torch.finfo(torch.float16).max


def packed_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """The product [..., in_features] -> [..., out_features] with a weight that `packs_linear` takes, laid out here and now."""
    # `.default`: choosing between overloads takes 5 us a call, and there are 169 calls a token in a small model.
    if multiplies(torch.bfloat16):
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        product = torch.ops.mkldnn._linear_pointwise.default
        return lambda x: product(x, laid_out, bias, "none", [], "")
    packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), None if bias is None else bias.float())
    product = torch.ops.quantized.linear_dynamic_fp16.default  # the activations stay fp32, whatever its name says
    return lambda x: product(x.float(), packed).to(x.dtype)


def fsdp() -> ModuleType:
    """torch's `fully_shard` and what belongs to it, at the place that torch 2.5 has it, or the public one."""
    public = import_module("torch.distributed.fsdp")
    return public if hasattr(public, "fully_shard") else import_module("torch.distributed._composable.fsdp")


def mend_pipelining() -> None:
    """Let pipeline schedules of torch 2.5 wait for every transfer of a batch.

    They keep the last one only. That is right where a batch is one transfer to the backend; gloo drops the others.
    """
    import torch.distributed as dist
    from torch.distributed.pipelining import schedules

    class Transfers:
        def __init__(self, works: list) -> None:
            self.works = works

        def wait(self) -> None:
            for work in self.works:
                work.wait()

    if "list" not in str(schedules._batch_p2p.__annotations__.get("return")):  # newer: all of them, in a list
        schedules._batch_p2p = lambda ops, desc=None: Transfers(dist.batch_isend_irecv(ops)) if ops else None


def peak_memory_bytes() -> int:
    """Highest memory of this process: allocated on the accelerator where there is one that counts it, else resident on the host."""
    module = getattr(torch, device().type, None)  # not `torch.accelerator`, which does not count before torch 2.9
    if hasattr(module, "max_memory_allocated"):
        return module.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """What ran: Python, libraries, this project."""
    names = ("tuneval", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
    return {"python": platform.python_version(), **{n: metadata.version(n) for n in names}}


def machine() -> dict[str, object]:
    """Where it ran: processor, cores, memory, device."""
    kind = device()
    return {
        "platform": platform.platform(),
        "processor": _processor_name(),
        "cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": kind.type,
        "threads": torch.get_num_threads(),
    }


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit of the working folder when it is a git checkout, with `+` when files differ from it."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    try:
        found = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
