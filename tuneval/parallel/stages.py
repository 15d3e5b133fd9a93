"""How many layers each pipeline stage gets: what the flags ask for, checked, with what would do instead."""

from __future__ import annotations

from itertools import pairwise

from tuneval.config.schema import ParallelConfig
from tuneval.errors import Problems

PP_FLAG = "--pipeline-model-parallel-size"
LIST_FLAG, VPP_FLAG = "--num-layer-list", "--num-layers-per-virtual-pipeline-stage"


def layers_of_chunks(parallel: ParallelConfig, layers: int, problems: Problems) -> tuple[tuple[int, ...], ...]:
    """Layer numbers of each global chunk, as `Layout.layers` has them; of use only where no problem was added."""
    pp, listed, each = (
        parallel.pipeline_model_parallel_size,
        parallel.num_layer_list,
        parallel.num_layers_per_virtual_pipeline_stage,
    )
    counts = (layers,)
    if pp > layers:
        problems.add(f"{PP_FLAG} {pp}: the model has {layers} layers. Choose {_either(divisors(layers))}")
    elif listed is not None and each is not None:
        problems.add(f"{LIST_FLAG} and {VPP_FLAG}: give one of them")
    elif pp == 1 and (listed or each) and (listed != str(layers)):
        flag, value = (LIST_FLAG, listed) if listed else (VPP_FLAG, each)
        problems.add(f"{flag} {value}: goes with {PP_FLAG} above 1; there is one stage. Leave it out")
    elif each is not None:
        counts = _virtual(pp, each, layers, problems)
    elif listed is not None:
        counts = listed_stages(listed, pp, layers, PP_FLAG, problems)
    elif layers % pp:
        problems.add(
            f"{PP_FLAG} {pp}: the model has {layers} layers, {layers} % {pp} = {layers % pp}. "
            f"Choose {_either(divisors(layers))}, or add {LIST_FLAG} {even_list(layers, pp)}"
        )
    else:
        counts = (layers // pp,) * pp
    bounds = [sum(counts[:i]) for i in range(len(counts) + 1)]
    return tuple(tuple(range(a, b)) for a, b in pairwise(bounds))


def _virtual(pp: int, each: int, layers: int, problems: Problems) -> tuple[int, ...]:
    if each < 1 or layers % (pp * each) or layers == pp * each:
        fitting = [n for n in divisors(layers // pp) if n < layers // pp] if layers % pp == 0 else []
        remedy = f"Choose {_either(fitting)}" if fitting else f"Leave it out, or choose another {PP_FLAG}"
        problems.add(
            f"{VPP_FLAG} {each}: {layers} layers on {pp} stages must make two or more chunks of {each} on each. {remedy}"
        )
    else:
        return (each,) * (layers // each)
    return (layers,)


def listed_stages(text: str, pp: int, layers: int, pp_flag: str, problems: Problems) -> tuple[int, ...]:
    """Layers of each stage by `--num-layer-list`; of use only where no problem was added.

    Args:
        text: what the flag says.
        pp: stages.
        layers: of the model.
        pp_flag: that asks for so many stages: training and conversion have one each.
        problems: where problems are collected.
    """
    example = f"For example {even_list(layers, pp)}"
    try:
        counts = tuple(int(word) for word in text.split(","))
    except ValueError:
        problems.add(f"{LIST_FLAG} {text}: must be whole numbers with commas. {example}")
        return (layers,)
    problems.check(len(counts) == pp, f"{LIST_FLAG} {text}: {len(counts)} stages, but {pp_flag} is {pp}. {example}")
    problems.check(
        sum(counts) == layers, f"{LIST_FLAG} {text}: adds up to {sum(counts)}, the model has {layers}. {example}"
    )
    problems.check(min(counts) > 0, f"{LIST_FLAG} {text}: every stage needs a layer. {example}")
    return counts


def even_list(layers: int, pp: int) -> str:
    """`--num-layer-list` of stages that differ by at most one layer, the first ones longer."""
    each, more = divmod(layers, pp)
    return ",".join(str(each + (stage < more)) for stage in range(pp))


def divisors(number: int) -> list[int]:
    """Rising, 1 and the number itself among them."""
    return [n for n in range(1, number + 1) if number % n == 0]


def _either(numbers: list[int]) -> str:
    """`1, 2 or 4`."""
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
