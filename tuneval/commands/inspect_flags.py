"""What the flags of `inspect` show by themselves."""

from __future__ import annotations

from tuneval.config.schema import InspectConfig
from tuneval.data.indexed import sft_prefix
from tuneval.errors import UserError


def check(config: InspectConfig) -> None:
    """Raise a UserError that lists the data sets beside the one that is not there."""
    prefix = config.data_path
    if sft_prefix(prefix, "input_ids").with_name(sft_prefix(prefix, "input_ids").name + ".idx").is_file():
        return
    ending = "_packed_input_ids_document.idx"
    beside = [str(p).removesuffix(ending) for p in sorted(prefix.parent.glob(f"*{ending}"))]
    hint = f"there is {', '.join(beside)}" if beside else "give the --output-prefix of preprocess"
    raise UserError(f"--data-path {prefix}: no data set of this prefix; {hint}")
