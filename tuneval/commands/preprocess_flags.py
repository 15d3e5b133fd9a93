"""What the flags of `preprocess` show by themselves."""

from __future__ import annotations

from tuneval.config.schema import PreprocessConfig
from tuneval.data.preprocess import check_flags
from tuneval.data.rows import input_files
from tuneval.data.template import check_prompt_type
from tuneval.data.tokenizer import find_tokenizer
from tuneval.errors import Problems


def check(config: PreprocessConfig) -> None:
    """Raise one UserError for all that is wrong."""
    problems = Problems()
    problems.attempt(lambda: check_flags(config))
    problems.attempt(lambda: check_prompt_type(config.prompt_type))
    problems.attempt(lambda: input_files(config.input))
    problems.attempt(lambda: find_tokenizer(config.tokenizer_name_or_path))
    problems.raise_if_any()
