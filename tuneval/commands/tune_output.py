"""What a run leaves behind at its end: RUN/model, RUN/adapter, RUN/mcore; each whole or absent."""

from __future__ import annotations

import shutil
from pathlib import Path

from tuneval import console, runtime
from tuneval.checkpoints.convert import to_mcore
from tuneval.checkpoints.hf import HfSink, copy_companions
from tuneval.checkpoints.layout import ShardLayout, plan_layout
from tuneval.checkpoints.load import AdapterSource, open_adapter, open_source
from tuneval.checkpoints.megatron_lora import LoraForm
from tuneval.checkpoints.rank_files import TRACKER
from tuneval.commands.tune_model import TunedModel
from tuneval.commands.tune_plan import Plan
from tuneval.errors import UserError
from tuneval.files import atomic_folder, read_json, read_object, write_json
from tuneval.model.decoder import stored_name
from tuneval.model.lora import is_adapter, save_tensors
from tuneval.parallel.weights import whole_tensors

_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja")


def output_folder(plan: Plan) -> Path:
    """The main result."""
    return Path(plan.config.save.save) / ("adapter" if plan.config.lora.enabled else "model")


def is_written(plan: Plan) -> bool:
    """Whether everything that the run ends with is there, and not what it ended with before it was given more steps."""
    steps = [_result_step(plan)]
    if plan.config.save.ckpt_format == "torch":
        tracker = Path(plan.config.save.save) / "mcore" / TRACKER
        text = tracker.read_text().strip() if tracker.is_file() else ""
        steps.append(int(text) if text.isdecimal() else -1)
    return min(steps) >= plan.train_iters


def _result_step(plan: Plan) -> int:
    """The step that the main result was written after; -1 where there is none. An older result does not say: the last."""
    folder = output_folder(plan)
    if not folder.is_dir():
        return -1
    record = folder / "tuneval.json"
    return read_object(record).get("step", plan.train_iters) if record.is_file() else plan.train_iters


def write_output(plan: Plan, model: TunedModel, step: int) -> Path:
    """Write the tuned model or the adapter. Every process must call it; process 0 writes.

    Args:
        plan: of the run.
        model: what was trained.
        step: steps done, the iteration of the Megatron files.

    Returns:
        The folder.
    """
    if model.lora is not None:
        _write_adapter(plan, model, step)
    else:
        _write_model(plan, model, step)
    if plan.config.save.ckpt_format == "torch" and runtime.is_main():
        _write_megatron(plan, step)
    model.mesh.wait()
    return output_folder(plan)


def base_model(plan: Plan) -> str:
    """Path of the model under the adapter, absolute so that the adapter works from anywhere on this machine."""
    source = plan.source
    return str((source.folder if source.kind == "hf" else Path(plan.config.model.load)).resolve())


def _write_model(plan: Plan, model: TunedModel, step: int) -> None:
    named, config = model.tensors(), plan.source.config
    names: dict[str, list[str]] = {}  # tensor -> its names in the source: two where it holds a tied head too
    for name in plan.source.names():
        names.setdefault(stored_name(config, name), []).append(name)
    missing = [name for name, _ in model.runner.named_parameters() if name not in names]
    assert not missing, f"parameters without a name in the source: {missing}"
    whole = whole_tensors(named, model.mesh, names)
    if not runtime.is_main():
        for _ in whole:
            pass
        return
    with HfSink(output_folder(plan)) as sink:
        _write_companions(plan, sink.folder, step)
        config = read_json(sink.folder / "config.json")
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = str(runtime.DTYPES[plan.config.precision.dtype]).removeprefix("torch.")
        write_json(sink.folder / "config.json", config)
        for stored, tensor in whole:
            for name in names[stored]:
                sink.add(name, tensor)


def _write_adapter(plan: Plan, model: TunedModel, step: int) -> None:
    adapter = {name: tensor for name, tensor in model.tensors().items() if is_adapter(name)}
    whole = list(whole_tensors(adapter, model.mesh))
    if not runtime.is_main():
        return
    with atomic_folder(output_folder(plan)) as folder:
        save_tensors(whole, model.lora, folder, base_model(plan))
        _write_companions(plan, folder, step)
        (folder / "config.json").unlink(missing_ok=True)  # an adapter's folder is not a model's


def _write_companions(plan: Plan, folder: Path, step: int) -> None:
    """Config, tokenizer, and tuneval.json, which carries the template and the step."""
    copy_companions(plan.source.folder, folder)
    tokenizer_folder = plan.config.model.tokenizer_name_or_path
    if tokenizer_folder is not None:
        for pattern in _TOKENIZER_FILES:
            for file in Path(tokenizer_folder).glob(pattern):
                shutil.copyfile(file, folder / file.name)
    template, manifest = plan.template, plan.dataset.manifest or {}
    write_json(
        folder / "tuneval.json",
        {
            "prompt_type": template.name if template else None,
            "template_fingerprint": template.fingerprint if template else None,
            "template": template.description if template else None,
            "base_model": base_model(plan),
            "base_config": str(plan.source.folder.resolve()),
            "method": "lora" if plan.config.lora.enabled else "full",
            "data_sha256": manifest.get("data_sha256"),
            "step": step,
        },
    )


def _write_megatron(plan: Plan, step: int) -> None:
    """RUN/mcore at the run's own TP x PP, from what was just written.

    With `--lora-shared-a` (or `--lora-ckpt-filter`) an adapter stays one, in MindSpeed-LLM's form; else it is merged.
    """
    config, form = plan.config, None
    source = open_adapter(output_folder(plan), plan.source) if config.lora.enabled else open_source(output_folder(plan))
    if isinstance(source, AdapterSource) and (config.lora.lora_shared_a or config.lora.lora_ckpt_filter):
        form = LoraForm(source.factors, source.config, config.lora.lora_ckpt_filter)
        source = source.base
    samples = step * config.batch.global_batch_size
    to_mcore(
        source,
        Path(config.save.save) / "mcore",
        _layout(plan),
        lora=form,
        iteration=step,
        consumed_samples=samples,
        vocabulary=plan.vocabulary,
        transformer_impl=config.save.transformer_impl,
    )


def _layout(plan: Plan) -> ShardLayout:
    """The run's, where Megatron's files can be cut so; they need every size divisible, training does not."""
    parallel = plan.config.parallel
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    try:
        return plan_layout(plan.source.config, tp, pp, parallel.num_layer_list)
    except UserError as error:
        console.note(f"{plan.config.save.save}/mcore is written at TP 1 x PP 1, which any layout loads ({error})")
        return plan_layout(plan.source.config, 1, 1, None)
