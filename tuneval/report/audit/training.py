"""Does a run's record of its training hold together: settings, steps, learning rates, tokens, log, data, weights?"""

from __future__ import annotations

import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tuneval.checkpoints.load import open_source, weights_hash
from tuneval.config.schema import BatchConfig, OptimConfig
from tuneval.data.batches import SftDataset, make_global_batch, sample_order
from tuneval.data.split import split_borders
from tuneval.errors import UserError
from tuneval.files import read_object, sha256_file
from tuneval.model.adapter import CONFIG_FILE, WEIGHTS_FILE
from tuneval.report.audit.findings import OK, OPEN, WRONG, Findings
from tuneval.report.checks import read_run
from tuneval.report.logs import read_log
from tuneval.report.records import RunRecord, Step, Validation, read_records
from tuneval.training.log_line import perplexity
from tuneval.training.schedule import Schedule

CONTINUED = re.compile(r"^ loading checkpoint from .* at iteration (\d+)\n(?! checkpoint version)", re.MULTILINE)
"""A line of log.txt: the run went on from its own checkpoint; after Megatron's, which `--load` names, a version follows."""


def check_training(run: Path, found: Findings) -> None:
    """Everything of a run folder but its evaluations.

    Args:
        run: the folder.
        found: gets the findings.
    """
    record = found.attempt("config.json", lambda: read_run(run))
    if not isinstance(record, RunRecord):
        return
    found.add("config.json", OK, f"{record.method}, {record.train_iters} steps planned, started {record.created}")
    steps, continued = _records(run, "metrics.jsonl", Step, found), _continued(run)
    if steps:
        _check_steps(record, steps, found)
        _check_rates(record, steps, found)
        _check_log(run, record, steps, continued, found)
    needed = bool(found.attempt("validation.jsonl", lambda: _validates(record)))
    validations = _records(run, "validation.jsonl", Validation, found, needed)
    _check_validations(record, validations, continued, found)
    _check_result(run, record, found)
    _check_start(record, found)
    _check_data(record, steps, found)


def _records(run: Path, name: str, kind: type, found: Findings, needed: bool = True) -> list:
    path = run / name
    if not path.is_file():
        if needed:
            found.add(name, WRONG, "is missing")
        return []
    rows = found.attempt(name, lambda: read_records(kind, path))
    return rows if isinstance(rows, list) else []


def _continued(run: Path) -> int:
    """Step that the run last went on from, as its log says: up to there other settings may have held. 0: none."""
    path = run / "log.txt"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return max(map(int, CONTINUED.findall(text)), default=0)


def _validates(record: RunRecord) -> bool:
    """Whether the settings leave samples to validate with."""
    samples, split, wanted = record.data.get("samples"), record.config.get("split"), record.config.get("eval_iters")
    if not wanted or not isinstance(samples, int) or not isinstance(split, str):
        return bool(wanted)
    _, start, end, _ = split_borders(samples, split)
    return start < end


def _check_steps(record: RunRecord, steps: list[Step], found: Findings) -> None:
    numbers = [s.step for s in steps]
    gap = next((i for i, n in enumerate(numbers, 1) if n != i), None)
    found.check(
        "steps in order",
        gap is None,
        f"line {gap} of metrics.jsonl is step {numbers[gap - 1] if gap else ''}",
        f"1 to {len(steps)}",
    )
    planned = record.train_iters
    found.check(
        "all steps done", numbers[-1] == planned, f"the record ends at step {numbers[-1]} of {planned}", f"{planned}"
    )
    found.none_of("losses are numbers", (f"step {s.step}: {s.loss}" for s in steps if not math.isfinite(s.loss)))
    size = record.config.get("global_batch_size")
    if isinstance(size, int):
        faults = (f"step {s.step}: {s.samples}, not {s.step * size}" for s in steps if s.samples != s.step * size)
        found.none_of("samples = steps x global batch size", faults, f"{size} a step")
    faults = (
        f"step {s.step}: {s.tokens} tokens, {s.trained_tokens} trained"
        for s in steps
        if not (0 < s.trained_tokens <= s.tokens or (s.trained_tokens, s.tokens, s.loss) == (0, 0, 0.0))
    )
    found.none_of("trained tokens within tokens", faults)
    faults = (
        f"step {s.step}: {s.tokens_per_second:.1f}, not {s.tokens / s.seconds:.1f}"
        for s in steps
        if not (s.seconds > 0 and math.isclose(s.tokens_per_second, s.tokens / s.seconds, rel_tol=1e-3))
    )
    found.none_of("speed = tokens / seconds", faults)


def _check_rates(record: RunRecord, steps: list[Step], found: Findings) -> None:
    """Every learning rate against the schedule that the settings give, which skipped steps don't advance."""
    what, config = "learning rates follow the schedule", record.config
    size = config.get("global_batch_size")
    if not isinstance(size, int) or config.get("lr") is None:
        found.add(what, OPEN, "the settings are not recorded")
        return
    optim = OptimConfig(**{f.name: config[f.name] for f in fields(OptimConfig) if f.name in config})
    schedule = Schedule(optim, record.train_iters, size)
    faults, skipped = [], 0
    for step in steps:
        right = schedule.lr_at((step.step - 1 - skipped) * size)
        if not math.isclose(step.lr, right, rel_tol=1e-6, abs_tol=1e-15):
            faults.append(f"step {step.step}: {step.lr:.6e}, not {right:.6e}")
        skipped += _skipped(step)
    told = f", {skipped} steps skipped" if skipped else ""
    found.none_of(what, faults, f"{optim.lr_decay_style}, peak {optim.lr:g}{told}")


def _skipped(step: Step) -> bool:
    """Whether `train()` made no update: fp16 overflowed, or there was no trainable token."""
    return step.grad_norm is None or not step.trained_tokens


def _check_log(run: Path, record: RunRecord, steps: list[Step], continued: int, found: Findings) -> None:
    """The console's lines against metrics.jsonl, where each step has a line."""
    what, path = "log.txt agrees with metrics.jsonl", run / "log.txt"
    if not path.is_file():
        found.add(what, WRONG, "log.txt is missing")
        return
    if record.config.get("log_interval", 1) != 1:
        found.add(what, OPEN, "its lines are means over several steps (--log-interval)")
        return
    log = found.attempt(what, lambda: read_log(path))
    if log is None or log.run is None:  # type: ignore[attr-defined]
        return
    logged = {s.step: s for s in log.run.steps}  # type: ignore[attr-defined]
    means = continued if any(s.step <= continued and s.step not in logged for s in steps) else 0
    faults = []
    for step in (s for s in steps if s.step > means):
        line = logged.get(step.step)
        if line is None:
            faults.append(f"step {step.step} has no line")
        elif step.loss > 0 and not _skipped(step) and not math.isclose(line.loss, step.loss, rel_tol=2e-6):
            faults.append(f"step {step.step}: loss {line.loss:.6e} in the log, {step.loss:.6e} in the record")
    if means and not faults:
        found.add(what, OPEN, f"up to step {means}, where the run was continued, lines are missing (--log-interval?)")
        return
    found.none_of(what, faults, f"{len(steps)} lines")


def _check_validations(record: RunRecord, validations: list[Validation], continued: int, found: Findings) -> None:
    if not validations:
        return
    faults = [
        f"step {v.step}: {v.perplexity:g}, not {perplexity(v.loss):g}"
        for v in validations
        if not math.isclose(v.perplexity, perplexity(v.loss), rel_tol=1e-6)
    ]
    interval = record.config.get("eval_interval")
    allowed = {0, record.train_iters}
    undue = [v.step for v in validations if isinstance(interval, int) and v.step not in allowed and v.step % interval]
    faults += [f"step {step}: none is due there" for step in undue if step > continued]
    if undue and not faults:
        found.add(
            "validations",
            OPEN,
            f"step {undue[0]}: none is due there, but the run was continued at step {continued}, perhaps with other settings",
        )
        return
    found.none_of("validations", faults, f"{len(validations)}, last loss {validations[-1].loss:.4f}")


def _check_result(run: Path, record: RunRecord, found: Findings) -> None:
    """RUN/adapter or RUN/model: there, made by this run's settings, really tuned."""
    name = "adapter" if record.method == "lora" else "model"
    folder = run / name
    if not folder.is_dir():
        found.add(f"{name}/", WRONG, "is missing: the run has no result")
        return
    what = f"{name}/tuneval.json agrees with config.json"
    facts = found.attempt(what, lambda: read_object(folder / "tuneval.json"))
    if isinstance(facts, dict):
        faults = [
            f"{key} is {facts.get(key)}, config.json says {expected}"
            for key, expected in (
                ("method", record.method),
                ("template_fingerprint", record.template_fingerprint),
                ("data_sha256", record.data.get("data_sha256")),
            )
            if facts.get(key) != expected
        ]
        found.none_of(what, faults)
    if record.method == "lora":
        found.attempt("adapter/", lambda: _check_adapter(folder, record, found))
    else:
        found.attempt("model/", lambda: _check_model(folder, record, found))


def _check_adapter(folder: Path, record: RunRecord, found: Findings) -> None:
    settings = read_object(folder / CONFIG_FILE)
    expected = {"r": record.config.get("lora_r"), "lora_alpha": record.config.get("lora_alpha")}
    faults = [f"{k} is {settings.get(k)}, config.json says {v}" for k, v in expected.items() if settings.get(k) != v]
    found.none_of("adapter/adapter_config.json agrees with config.json", faults, f"r {expected['r']}")
    count, still = 0, []
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            tensor = file.get_tensor(key)
            count += tensor.numel()
            if not bool(tensor.isfinite().all()):
                still.append(f"{key} holds NaN or infinity")
            elif ".lora_B." in key and not bool(tensor.any()):
                still.append(f"{key} is still zero, as before tuning")
    found.none_of("the adapter was tuned", still)
    trainable = record.parameters.get("trainable")
    found.check(
        "parameters of the adapter", count == trainable, f"{count:,}, config.json says {trainable}", f"{count:,}"
    )


def _check_model(folder: Path, record: RunRecord, found: Findings) -> None:
    before, now = record.model.get("weights_sha256"), weights_hash(open_source(folder))
    found.check("the model was tuned", now != before, "its weights are those it started from", f"hash {now[:12]}")


def _check_start(record: RunRecord, found: Findings) -> None:
    what, named = "weights it started from", record.model.get("path")
    if not named or not Path(named).exists():
        found.add(what, OPEN, f"{named or 'the path is not recorded'}: not on this machine")
        return
    now = found.attempt(what, lambda: weights_hash(open_source(named)))
    if now is not None:
        expected = record.model.get("weights_sha256")
        found.check(
            what, now == expected, f"{named} has hash {str(now)[:12]}, config.json says {str(expected)[:12]}", named
        )


def _check_data(record: RunRecord, steps: list[Step], found: Findings) -> None:
    """The token files against their hashes; then every step's tokens counted again."""
    what, prefix = "training data", str(record.config.get("data_path"))
    manifest = Path(f"{prefix}_manifest.json")
    if not manifest.is_file():
        found.add(what, OPEN, f"{manifest}: not on this machine")
        return
    facts = found.attempt(what, lambda: read_object(manifest))
    if not isinstance(facts, dict):
        return
    faults = []
    if facts.get("data_sha256") != record.data.get("data_sha256"):
        faults.append("its manifest is of other data than config.json names")
    for name, expected in (facts.get("files_sha256") or {}).items():
        path = manifest.parent / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif sha256_file(path) != expected:
            faults.append(f"{name} is not the file that the manifest describes")
    found.none_of(what, faults, prefix)
    if not faults and steps:
        found.attempt("tokens of every step, counted again", lambda: _check_tokens(record.config, prefix, steps, found))


def _check_tokens(config: dict[str, Any], prefix: str, steps: list[Step], found: Findings) -> None:
    what = "tokens of every step, counted again"
    needed = ("split", "global_batch_size", "seed", "seq_length", "train_iters")
    if any(config.get(key) is None for key in needed):
        found.add(what, OPEN, "the settings are not recorded")
        return
    dataset, size = SftDataset(prefix), config["global_batch_size"]
    end = split_borders(len(dataset), config["split"])[1]
    if end < 1:
        raise UserError(f"--split {config['split']} leaves no training sample of {len(dataset)}")
    multiple = size if config.get("padded_samples") else 1
    order = sample_order(end, steps[-1].step * size, config["seed"], not config.get("no_shuffle"), multiple)
    faults = []
    for step in steps:
        ids = order[(step.step - 1) * size : step.step * size].tolist()
        batch = make_global_batch(dataset, ids, BatchConfig(global_batch_size=size), config["seq_length"])
        if (step.tokens, step.trained_tokens) != (batch.tokens, batch.trained_tokens):
            faults.append(
                f"step {step.step}: {step.tokens} and {step.trained_tokens} trained, the data has {batch.tokens} and "
                f"{batch.trained_tokens}"
            )
    found.none_of(what, faults, f"{sum(s.tokens for s in steps):,} in {len(steps)} steps")
