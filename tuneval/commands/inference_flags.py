"""What the flags of MindSpeed-LLM's inference.py show by themselves."""

from __future__ import annotations

from tuneval.checkpoints.paths import check_there
from tuneval.config.schema import InferenceConfig, SamplingConfig
from tuneval.data.template import check_prompt_type
from tuneval.errors import Problems
from tuneval.inference.sampling import add_problems
from tuneval.parallel.sizes import check_sizes


def check(config: InferenceConfig) -> None:
    """Raise one UserError for all that is wrong."""
    problems = Problems()
    problems.check(config.task, "--task: name at least one")
    problems.check(
        not (config.hf_chat_template and config.prompt_type), "--hf-chat-template and --prompt-type: give one of them"
    )
    problems.check(config.history_turns >= 0, f"--history-turns {config.history_turns}: must be at least 0")
    add_problems(sampling_of(config), problems)
    problems.attempt(lambda: check_prompt_type(config.prompt_type))
    check_sizes(config.shard, problems)
    problems.attempt(lambda: check_there(config.load, config.lora_load))
    problems.raise_if_any()


def sampling_of(config: InferenceConfig) -> SamplingConfig:
    """Its sampling flags as `generate` has them."""
    return SamplingConfig(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        seed=config.seed,
    )
