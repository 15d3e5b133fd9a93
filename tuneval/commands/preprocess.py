"""`tuneval preprocess`: instruction records -> token files."""

from __future__ import annotations

import shlex
from typing import Any

from tuneval.config.flags import Parsed
from tuneval.config.schema import PreprocessConfig
from tuneval.console import note, out, warn
from tuneval.data.preprocess import preprocess


def main(parsed: Parsed) -> None:
    config: PreprocessConfig = parsed.config
    manifest = preprocess(config)
    for line in summary(manifest):
        out.print(line, markup=False)
    warn_of(manifest)
    tokenizer, data = (shlex.quote(str(path)) for path in (config.tokenizer_name_or_path, config.output_prefix))
    note(f"look at it:  tuneval inspect --data-path {data}")
    note(f"tune on it:  tuneval tune --load {tokenizer} --data-path {data} --save RUN")


def summary(manifest: dict[str, Any]) -> list[str]:
    """What was written, in a few lines."""
    lengths = ", ".join(f"{name} {value}" for name, value in manifest["lengths"].items())
    share = manifest["trained_tokens"] / manifest["tokens"]
    packed = f" in {manifest['samples']} bins of {manifest['seq_length']}" if manifest["packed"] != "no" else ""
    return [
        f"{manifest['conversations']} samples{packed} from {manifest['input']['rows']} rows, "
        f"{manifest['tokens']} tokens, {share:.1%} trained",
        f"lengths in tokens: {lengths}",
        f"template {manifest['prompt_type']} ({manifest['template_fingerprint'][:12]}), {manifest['handler']}",
        f"duplicates: {manifest['duplicates']}; over-long: {manifest['over_long']}",
    ]


def warn_of(manifest: dict[str, Any]) -> None:
    """One line for each reason rows were left out, with the first row numbers."""
    for reason, count in manifest["skipped"].items():
        rows = manifest["skipped_rows"][reason][:5]
        listed = ", ".join(map(str, rows)) + (", ..." if count > len(rows) else "")
        warn(f"left out, {reason}: {count} ({'row' if count == 1 else 'rows'} {listed}, counted from 0)")
