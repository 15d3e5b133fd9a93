"""What the flags of `generate` show by themselves."""

from __future__ import annotations

from tuneval.checkpoints.paths import check_there
from tuneval.config.schema import GenerateConfig
from tuneval.data.template import check_prompt_type
from tuneval.errors import Problems
from tuneval.inference.sampling import add_problems
from tuneval.parallel.sizes import check_sizes


def check(config: GenerateConfig) -> None:
    """Raise one UserError for all that is wrong."""
    problems = Problems()
    problems.check(
        (config.prompt is None) != (config.input is None), "give one of --prompt TEXT and --input FILE.jsonl"
    )
    problems.check(
        config.output is None or config.input is not None,
        "--output: goes with --input; the answer to --prompt goes to standard output",
    )
    problems.check(
        config.before is None or (config.input is not None and config.load.is_dir()),
        "--before: goes with --input FILE.jsonl and a run folder to --load",
    )
    problems.check(
        config.output is None or config.input is None or config.output.resolve() != config.input.resolve(),
        f"--output {config.output}: is --input; choose another file",
    )
    problems.check(config.batch_size >= 1, f"--batch-size {config.batch_size}: must be at least 1")
    given = [flag for flag, value in (("--prompt-type", config.prompt_type), ("--system", config.system)) if value]
    problems.check(not (config.raw and given), f"--raw: uses no template, so {' and '.join(given)} can't act")
    add_problems(config.sampling, problems)
    problems.attempt(lambda: check_prompt_type(config.prompt_type))
    check_sizes(config.shard, problems)
    problems.attempt(lambda: check_there(config.load, config.lora_load))
    problems.raise_if_any()
