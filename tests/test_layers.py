"""The house's order: a file imports only from floors above it, packages' `__init__.py` are empty."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "tuneval"
FLOORS = """
errors files console cores wide_products runtime
config.schema config.fields config.compatibility config.flags config.words config.mindspeed_tune config.mindspeed_answers config.mindspeed
parallel.stages parallel.sizes parallel.mesh parallel.peers launch
data.split data.rows data.records data.prompt_types data.rendering data.chat_template data.template data.tokenizer data.manifest data.indexed data.truncation data.packing data.workers data.tally data.preprocess data.batches
model.weight_map model.attention model.frugal model.build model.decoder model.adapter model.fused_linear model.lora model.loss
parallel.data parallel.micro_batches parallel.schedules parallel.pipeline
parallel.heads parallel.tensor parallel.weights parallel.gradients parallel.apply
training.schedule training.loss_scale training.eight_bit training.halves training.optim training.loop training.log_line
planning.ledger planning.rehearsal planning.estimate planning.search
checkpoints.paths checkpoints.pickled checkpoints.streamed checkpoints.hf_files checkpoints.hf checkpoints.layout checkpoints.rank_files checkpoints.megatron checkpoints.megatron_lora checkpoints.padding checkpoints.convert checkpoints.load checkpoints.resume
inference.sampling inference.prefix inference.generate inference.linear inference.chat
evaluation.exam evaluation.exam_files evaluation.layouts evaluation.tasks evaluation.extract evaluation.margins evaluation.decisions evaluation.styles evaluation.ceval_styles evaluation.further_styles evaluation.catalogue evaluation.score evaluation.replies evaluation.model_scorer evaluation.harness evaluation.self_test evaluation.precision evaluation.contamination evaluation.stats evaluation.bootstrap evaluation.sign_flip evaluation.units evaluation.partial
sweep.points sweep.spec sweep.records sweep.steps sweep.checks sweep.state sweep.processes sweep.progress sweep.estimate sweep.runner
report.records report.checks report.comparison report.tables report.plots report.charts report.answers report.words_sweep report.words_trust report.words report.document report.legend report.gather report.logs report.findings report.parts.trust report.parts.summary report.parts.training report.parts.scores report.parts.samples report.parts.setting report.render report.sweep.gather report.sweep.findings report.sweep.spelling report.sweep.summary report.sweep.axes report.sweep.runs report.sweep.scores report.sweep.render report.audit.findings report.audit.training report.audit.scores report.audit.check commands cli __main__
""".split()  # fmt: skip


def floor_of(module: str) -> int:
    name = module.removeprefix("tuneval.")
    if name.startswith("commands"):
        name = "commands"
    assert name in FLOORS, f"{module}: give it a floor in FLOORS"
    return FLOORS.index(name)


def modules() -> dict[str, Path]:
    return {
        "tuneval." + ".".join(p.relative_to(PACKAGE).with_suffix("").parts): p
        for p in PACKAGE.rglob("*.py")
        if p.name != "__init__.py" and "assets" not in p.parts
    }


def imported(path: Path, known: dict[str, Path]) -> list[str]:
    """Modules of the project, which are `known`, that a file imports, wherever in the file."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tuneval":
            names += [node.module] if node.module in known else [f"{node.module}.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names += [a.name for a in node.names if a.name.split(".")[0] == "tuneval"]
    return names


def test_imports_go_one_way():
    known = modules()
    wrong = [
        f"{module} imports {name}"
        for module, path in known.items()
        for name in imported(path, known)
        if floor_of(name) > floor_of(module)
        or (floor_of(name) == floor_of(module) and not module.startswith("tuneval.commands"))
    ]
    assert not wrong, "\n".join(wrong)


def test_init_files_are_empty():
    assert [p for p in PACKAGE.rglob("__init__.py") if p.read_text().strip()] == []


def test_devices_are_named_in_runtime_only():
    """`cuda` and `npu` as words of code (strings and names; docstrings apart) appear in runtime.py alone."""
    wrong = []
    for module, path in modules().items():
        if module == "tuneval.runtime":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = (
                node.value if isinstance(node, ast.Constant) else node.attr if isinstance(node, ast.Attribute) else None
            )
            if text in ("cuda", "npu"):
                wrong.append(f"{module}:{node.lineno}")
    assert not wrong
