"""`tuneval verify A B`: two checkpoints of any formats are equal, bit for bit, and compute the same logits."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field

import torch
from rich.markup import escape
from rich.table import Table

from tuneval import runtime
from tuneval.checkpoints.hf import Source, size_of
from tuneval.checkpoints.load import open_source
from tuneval.config import flags
from tuneval.console import out, track
from tuneval.data.tokenizer import load_tokenizer
from tuneval.errors import UserError
from tuneval.model.build import build_model

TEXT = "The capital of France is Paris. 中国的首都是北京。 def add(a, b): return a + b  # 1 + 1 = 2"
SHOWN = 10


@dataclass
class Comparison:
    """What comparing the tensors of two checkpoints found."""

    equal: int = 0
    """Tensors that are the same, bit for bit."""
    differences: list[str] = field(default_factory=list)
    """One line for each tensor that is not."""


def main(parsed: flags.Parsed) -> int:
    config = parsed.config
    a, b = open_source(config.a), open_source(config.b)
    tensors = compare_tensors(a, b)
    table = Table(
        "check",
        "verdict",
        "detail",
        title=escape(f"{config.a} ({a.kind})  =  {config.b} ({b.kind}) ?"),
        title_justify="left",
    )
    total = tensors.equal + len(tensors.differences)
    well, same = not tensors.differences, True
    table.add_row("tensors", _word(well), f"{tensors.equal} of {total} bit-identical, {size_of(a) / 2**30:.2f} GiB")
    if not config.no_logits:
        same, detail = compare_logits(a, b)
        table.add_row("logits", _word(same), escape(detail))
    out.print(table)
    for line in tensors.differences[:SHOWN]:
        out.print(f"  {line}", markup=False)
    if len(tensors.differences) > SHOWN:
        out.print(f"  ... and {len(tensors.differences) - SHOWN} more")
    if well and same is None:
        out.print("[bold yellow]TENSORS EQUAL[/], the logits not computed; --no-logits leaves them out")
    else:
        out.print("[bold green]EQUAL[/]" if well and same else "[bold red]NOT EQUAL[/]")
    return 0 if well and same else 1


def _word(well: bool | None) -> str:
    return "[yellow]unknown[/]" if well is None else "[green]equal[/]" if well else "[red]DIFFER[/]"


def compare_tensors(a: Source, b: Source) -> Comparison:
    """Compare every tensor by its bits, one at a time; names that only one side has are differences."""
    found, names_a, names_b = Comparison(), set(a.names()), set(b.names())
    found.differences += [f"{name}: only in the second" for name in b.names() if name not in names_a]
    for name in track(a.names(), "comparing tensors"):
        difference = "only in the first" if name not in names_b else _difference(a, b, name)
        if difference is None:
            found.equal += 1
        else:
            found.differences.append(f"{name}: {difference}")
    return found


def _difference(a: Source, b: Source, name: str) -> str | None:
    for what in ("dtype", "shape"):
        of_a, of_b = getattr(a, what)(name), getattr(b, what)(name)
        if of_a != of_b:
            return f"{what} {of_a} and {of_b}"
    x, y = a.read(name), b.read(name)
    unequal = _bits(x) != _bits(y)  # of the bits: a NaN equals itself, and -0 is not 0
    if not unequal.any():
        return None
    where = [int(i) for i in unequal.nonzero()[0]]
    pair = f"{x[tuple(where)].item():.9g} and {y[tuple(where)].item():.9g}"
    return f"{int(unequal.sum())} of {x.numel()} elements differ, the first at {where}: {pair}"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(integers[tensor.dtype.itemsize])


def compare_logits(a: Source, b: Source) -> tuple[bool | None, str]:
    """Run a fixed text through both models, one after the other, each in its stored type.

    Returns:
        Whether the logits are the same but for roundings of the stored type (None: they can't be computed), and a line
        about them. What is no number (weights that are none) must be none in both.
    """
    odd = sorted(
        {str(s.dtype(n)).removeprefix("torch.") for s in (a, b) for n in s.names() if not _computes(s.dtype(n))}
    )
    if odd:
        return None, f"not computed: weights of type {', '.join(odd)}"
    ids = _text_ids(a, b)
    try:
        first, second = logits_of(a, ids), logits_of(b, ids)
    except UserError as error:
        return None, f"not computed: {error}"
    if first.shape != second.shape:
        return False, f"shapes {list(first.shape)} and {list(second.shape)}"
    finite = first.isfinite() & second.isfinite()
    alike = torch.where(finite, 0, first.nan_to_num(nan=7)) == torch.where(finite, 0, second.nan_to_num(nan=7))
    largest = (first - second)[finite].abs().max().item() if finite.any() else 0.0
    # Equal weights at other addresses may be summed in another order: a few roundings of the stored type are allowed.
    roundings = 8 * torch.finfo(a.dtype(a.names()[0])).eps
    same = bool(alike.all()) and (not finite.any() or largest <= roundings * first[finite].abs().max().item())
    none = int((~finite).sum())
    about = f"; {none} of {finite.numel()} are not finite" if none else ""
    return same, f"{ids.shape[1]} tokens, largest difference {largest:.3g}{about}"


def _computes(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize > 1


def logits_of(source: Source, ids: torch.Tensor) -> torch.Tensor:
    """Logits of one text.

    Args:
        source: the weights; the model is built, used and dropped.
        ids: token ids [1, tokens].

    Returns:
        fp32 logits [1, tokens, vocabulary] on the CPU.
    """
    dtype = source.dtype(source.names()[0])
    model = build_model(source.config, source.read, dtype, runtime.device())
    with torch.no_grad():
        logits = model(ids.to(model.device)).logits.float().cpu()
    del model
    gc.collect()
    return logits


def _text_ids(a: Source, b: Source) -> torch.Tensor:
    vocabulary = min(a.config.vocab_size, b.config.vocab_size)
    for source in (a, b):
        try:
            ids = load_tokenizer(source.folder)(TEXT, add_special_tokens=False)["input_ids"]
        except UserError:  # weights may be compared without a tokenizer: any fixed ids will do
            continue
        if known := [i for i in ids if i < vocabulary]:
            return torch.tensor([known])
    return torch.arange(1, 33)[None] * 7 % vocabulary
