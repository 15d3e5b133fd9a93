"""What the flags of `chat` show by themselves."""

from __future__ import annotations

from tuneval.checkpoints.paths import check_there
from tuneval.config.schema import ChatConfig
from tuneval.data.records import is_text
from tuneval.data.template import check_prompt_type
from tuneval.errors import Problems
from tuneval.inference.sampling import add_problems


def check(config: ChatConfig) -> None:
    """Raise one UserError for all that is wrong."""
    problems = Problems()
    add_problems(config.sampling, problems)
    problems.check(
        is_text(config.system or ""), "--system: has half a character (a surrogate by itself), which is not text"
    )
    problems.check(
        config.sampling.num_beams <= 1,
        "--num-beams: chat shows an answer as it comes, and beams end together; tuneval generate has them",
    )
    problems.attempt(lambda: check_prompt_type(config.prompt_type))
    problems.attempt(lambda: check_there(config.load, config.lora_load))
    problems.raise_if_any()
