"""Records -> indexed token files and their manifest: streamed, in parallel, published only when complete."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tuneval.config.flags import to_dict
from tuneval.config.schema import PreprocessConfig
from tuneval.console import note, progress_bar, warn
from tuneval.data.indexed import SFT_COLUMNS, IndexedDataset, IndexedWriter, publish_together, sft_prefix
from tuneval.data.manifest import manifest_path
from tuneval.data.packing import packed_rows
from tuneval.data.records import AlpacaHandler, Handler, handler_name, make_handler
from tuneval.data.rendering import Template
from tuneval.data.rows import input_files, parsed, read_unparsed
from tuneval.data.tally import Tally, length_percentiles
from tuneval.data.template import load_template
from tuneval.data.tokenizer import load_tokenizer, vocabulary_sha256
from tuneval.data.workers import Chunk, Job, encode_chunks, usual_workers, with_first
from tuneval.errors import Problems, UserError
from tuneval.files import sha256_file, sha256_json, write_json

SCHEMA_VERSION = 1
MOST_WORKERS, LONGEST_SAMPLE = 512, 10_000_000
"""Beyond these a number is a slip of the finger."""
ROWS_LOOKED_AT = 100
"""Rows that show which columns the input has."""
LITTLE_INPUT = 2000
"""Rows up to which processes cost more to start than they save."""


def preprocess(config: PreprocessConfig) -> dict[str, Any]:
    """Turn `config.input` into token files at `config.output_prefix`.

    Returns:
        The manifest, which also lies at PREFIX_manifest.json.

    Raises:
        UserError: flags that don't fit together, an unreadable input, no good row, or with `--strict` any bad row.
    """
    map_keys = check_flags(config)
    template = load_template(
        config.prompt_type, load_tokenizer(config.tokenizer_name_or_path, not config.tokenizer_not_use_fast)
    )
    totals: list[int] = []
    first, rows = with_first(read_unparsed(config.input, totals.append), LITTLE_INPUT)
    total = totals[0] if totals and len(input_files(config.input)) == 1 else None
    looked_at = [*map(parsed, first[:ROWS_LOOKED_AT])]
    handler = _choose_handler(config, map_keys, looked_at)
    if any("</think>" in str(row) for row in looked_at) and template.leaves_out_thoughts():
        warn(
            "the chat template leaves out what an answer thinks (<think> ... </think>): only what follows is trained. "
            "Change the tokenizer's template, or name another --prompt-type"
        )
    job = Job(handler, template, config.append_eod, config.seq_length - 1 if config.neat_pack else None)
    workers = config.workers or (1 if len(first) < LITTLE_INPUT else usual_workers())
    tally = Tally()
    with _published(Path(config.output_prefix)) as (writers, publish):
        chunks = _with_progress(encode_chunks(rows, job, workers), total, config.log_interval)
        if config.pack:
            _write_packed(chunks, tally, writers, template, config)
        else:
            _write_samples(chunks, tally, writers, config.seq_length)
        tally.check(config.input, config.strict)
        manifest = _manifest(config, map_keys, tally, template, handler, writers)
        publish(manifest)
    return manifest


def check_flags(config: PreprocessConfig) -> dict[str, Any] | None:
    """Hold the flags against each other; returns the parsed `--map-keys`. Raises one UserError for all problems."""
    problems = Problems()
    in_range = config.workers is None or 1 <= config.workers <= MOST_WORKERS
    problems.check(in_range, f"--workers {config.workers}: from 1 to {MOST_WORKERS}")
    problems.check(config.log_interval >= 1, f"--log-interval {config.log_interval}: at least 1")
    problems.check(not config.neat_pack or config.pack, "--neat-pack: numbers the samples of --pack; give that too")
    problems.check(not config.pack or config.seq_length, "--pack: give the bins' length with --seq-length")
    if config.seq_length is not None:
        in_range = 2 <= config.seq_length <= LONGEST_SAMPLE
        problems.check(in_range, f"--seq-length {config.seq_length}: from 2 to {LONGEST_SAMPLE} tokens")
    prefix = str(config.output_prefix)
    problems.check(
        prefix.rpartition("/")[2] not in ("", ".", ".."),
        f"--output-prefix {prefix}: names a folder, and the files' names begin with the prefix. Give a name in it, such as "
        f"{prefix.rstrip('/')}/data",
    )
    map_keys = None
    if config.map_keys:
        example = '{"prompt": "zh_instruction", "query": "zh_input", "response": "zh_output"}'
        try:
            map_keys = json.loads(config.map_keys)
            problems.check(
                isinstance(map_keys, dict), f"--map-keys {config.map_keys}: must be an object like {example}"
            )
        except (json.JSONDecodeError, RecursionError) as error:
            problems.add(f"--map-keys {config.map_keys}: not valid JSON ({error}). Quote it: '{example}'")
    problems.raise_if_any()
    return map_keys


def _choose_handler(config: PreprocessConfig, map_keys: dict[str, Any] | None, first: list[Any]) -> Handler:
    """Make the handler from the columns of the first rows, and say what was chosen where the flags leave it open."""
    columns: dict[str, Any] = {}
    for row in reversed(first):
        given = row.items() if isinstance(row, dict) else ()
        columns.update({k: v for k, v in given if v or k not in columns})  # an empty list shows no roles
    if not first:
        raise UserError(f"--input {config.input}: holds no records")
    if not columns:
        raise UserError(f"--input {config.input}: no row with named columns in it")
    handler = make_handler(config.handler_name, map_keys, columns)
    if isinstance(handler, AlpacaHandler):
        used = [handler.prompt, handler.query, handler.response, handler.history, handler.system]
        unused = [c for c in ("history", "system") if c in columns and c not in used and c not in (map_keys or {})]
        if map_keys is None or config.handler_name == "auto":
            note(f"columns: {', '.join(c for c in used if c)}")
        for column in unused:
            note(f'column {column} is not used; --map-keys \'{{"{column}": "{column}"}}\' uses it')
    return handler


@contextmanager
def _published(prefix: Path) -> Iterator[tuple[dict[str, IndexedWriter], Callable[[dict[str, Any]], None]]]:
    """Writers of the three columns, and the function that publishes them with a manifest; else nothing appears."""
    with ExitStack() as stack:
        writers = {column: IndexedWriter(sft_prefix(prefix, column)) for column in SFT_COLUMNS}
        for writer in writers.values():
            stack.callback(writer.discard)

        def publish(manifest: dict[str, Any]) -> None:
            for writer in writers.values():
                writer.finish()
            # No set can be read without this index: a kill leaves no manifest beside files of another run.
            Path(f"{sft_prefix(prefix, SFT_COLUMNS[0])}.idx").unlink(missing_ok=True)
            write_json(manifest_path(prefix), manifest)
            publish_together(list(writers.values()))

        yield writers, publish


def _with_progress(chunks: Iterator[Chunk], total: int | None, log_interval: int) -> Iterator[Chunk]:
    """A bar on a terminal; else a line every `log_interval` records."""
    done, printed, began = 0, 0, time.monotonic()
    with progress_bar("preprocess, records", total, every_seconds=float("inf")) as bar:
        for chunk in chunks:
            yield chunk
            done += chunk.rows
            bar.advance(chunk.rows)
            if not sys.stderr.isatty() and done // log_interval > printed // log_interval:
                note(f"processed {done} records ({done / (time.monotonic() - began):.0f} records/s)")
                printed = done


def _write_samples(chunks: Iterable[Chunk], tally: Tally, writers: dict[str, IndexedWriter], limit: int | None) -> None:
    """One sequence and document a sample; a sample of `--seq-length` tokens or more leaves only its document mark."""
    for chunk in chunks:
        kept = chunk.lengths < limit if limit else np.ones(len(chunk.lengths), bool)
        tally.count(chunk, kept)
        columns = {
            "input_ids": chunk.input_ids,
            "attention_mask": np.ones_like(chunk.input_ids),
            "labels": chunk.labels,
        }
        for name, writer in writers.items():
            if kept.all():
                writer.add_many(columns[name], chunk.lengths)
                continue
            samples = np.split(columns[name], np.cumsum(chunk.lengths)[:-1])
            for sample, keep in zip(samples, kept):
                writer.add(sample) if keep else writer.add_empty_document()


def _write_packed(
    chunks: Iterable[Chunk],
    tally: Tally,
    writers: dict[str, IndexedWriter],
    template: Template,
    config: PreprocessConfig,
) -> None:
    """Bins need every length first: samples wait on disk beside the output."""
    assert config.seq_length is not None
    prefix = Path(config.output_prefix)
    with TemporaryDirectory(prefix=f".{prefix.name}-", dir=prefix.parent) as folder:
        waiting = {name: IndexedWriter(Path(folder) / name) for name in ("input_ids", "labels")}
        for chunk in chunks:
            kept = chunk.lengths < config.seq_length
            tally.count(chunk, kept)
            tokens = np.repeat(kept, chunk.lengths)
            waiting["input_ids"].add_many(chunk.input_ids[tokens], chunk.lengths[kept])
            waiting["labels"].add_many(chunk.labels[tokens], chunk.lengths[kept])
        for writer in waiting.values():
            writer.finish()
            writer.publish()
        input_ids, labels = (IndexedDataset(Path(folder) / name) for name in ("input_ids", "labels"))
        for row in packed_rows(input_ids, labels, config.seq_length, template.pad_token_id, config.neat_pack):
            for column, values in zip(("input_ids", "attention_mask", "labels"), row):
                writers[column].add(values)


def _manifest(
    config: PreprocessConfig,
    map_keys: dict[str, Any] | None,
    tally: Tally,
    template: Template,
    handler: Handler,
    writers: dict[str, IndexedWriter],
) -> dict[str, Any]:
    lengths = np.frombuffer(tally.lengths, np.int32)
    hashes = {sft_prefix(config.output_prefix, c).name + ".bin": w.sha256 for c, w in writers.items()}
    from tuneval import runtime  # brings torch, which nothing else here needs

    return {
        "schema_version": SCHEMA_VERSION,
        "samples": writers["input_ids"].sequences,
        "conversations": len(lengths),
        "tokens": int(lengths.sum(dtype=np.int64)),
        "trained_tokens": tally.trained_tokens,
        "lengths": length_percentiles(lengths),
        "input": {"path": str(config.input), "sha256": _input_sha256(config.input), "rows": tally.rows},
        "prompt_type": config.prompt_type,
        "template_fingerprint": template.fingerprint,
        "template": template.description,
        "stop_token_ids": list(template.stop_token_ids),
        "tokenizer": {
            "path": config.tokenizer_name_or_path,
            "vocab_size": len(template.tokenizer),
            "sha256": vocabulary_sha256(template.tokenizer),
        },
        "handler": handler_name(handler),
        "map_keys": map_keys,
        "skipped": dict(tally.skipped.most_common()),
        "skipped_rows": tally.skipped_rows,
        "over_long": tally.over_long,
        "duplicates": tally.duplicates,
        "data_sha256": sha256(json.dumps(sorted(hashes.values())).encode()).hexdigest(),
        "files_sha256": hashes,
        "packed": "neat-pack" if config.neat_pack else "pack" if config.pack else "no",
        "seq_length": config.seq_length,
        "versions": runtime.versions(),
        "config": to_dict(config),
    }


def _input_sha256(path: Path) -> str:
    """Hash of the file; of a folder, of its record files' names and hashes."""
    if path.is_file():
        return sha256_file(path)
    return sha256_json({f.name: sha256_file(f) for f in input_files(path)})
