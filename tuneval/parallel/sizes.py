"""The flags of a layout by themselves: what no model and no number of processes makes right. Without torch: it is told at once."""

from __future__ import annotations

from tuneval.config.schema import ParallelConfig, ShardConfig
from tuneval.errors import Problems
from tuneval.parallel.stages import PP_FLAG, VPP_FLAG

TP_FLAG = "--tensor-model-parallel-size"


def check_sizes(parallel: ParallelConfig | ShardConfig, problems: Problems) -> None:
    """Add sizes below 1, and choices that exclude each other."""
    problems.check(
        parallel.tensor_model_parallel_size >= 1,
        f"{TP_FLAG} {parallel.tensor_model_parallel_size}: must be at least 1",
    )
    if isinstance(parallel, ShardConfig):
        return
    pp, each = parallel.pipeline_model_parallel_size, parallel.num_layers_per_virtual_pipeline_stage
    problems.check(pp >= 1, f"{PP_FLAG} {pp}: must be at least 1")
    problems.check(each is None or each >= 1, f"{VPP_FLAG} {each}: must be at least 1")
    problems.check(
        not (parallel.use_distributed_optimizer and parallel.data_parallel_sharding == "none"),
        "--use-distributed-optimizer and --data-parallel-sharding none: give one of them",
    )
    problems.check(
        parallel.pipeline_schedule != "gpipe" or each is None,
        f"--pipeline-schedule gpipe and {VPP_FLAG}: give one of them; several chunks a stage run interleaved 1F1B",
    )
