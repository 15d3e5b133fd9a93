"""What the flags of `inspect` show by themselves."""

from __future__ import annotations

from pathlib import Path

from tuneval.config.schema import InspectConfig
from tuneval.data.indexed import check_files, sft_prefix
from tuneval.errors import UserError


def check(config: InspectConfig) -> None:
    """Raise a UserError where the data set is not there."""
    check_data_set(config.data_path)


def check_data_set(prefix: Path) -> None:
    """Raise a UserError that lists the data sets beside one that is not there, or names the file that it lacks."""
    first, ending = sft_prefix(prefix, "input_ids"), "_packed_input_ids_document.idx"
    if first.with_name(first.name + ".idx").is_file():
        check_files(first)
        return
    beside = [str(p).removesuffix(ending) for p in sorted(prefix.parent.glob(f"*{ending}"))]
    hint = f"there is {', '.join(beside)}" if beside else "give the --output-prefix of preprocess"
    raise UserError(f"--data-path {prefix}: no data set of this prefix; {hint}")
