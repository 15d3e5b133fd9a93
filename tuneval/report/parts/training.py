"""Training: curves of every run in common figures, and the key figures run by run."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from statistics import median

from tuneval.report import plots
from tuneval.report import words as spell
from tuneval.report.document import Figure, Figures, Section, Table, Text, csv_text
from tuneval.report.findings import curve, smoothing, time_axis
from tuneval.report.gather import Gathered, Run
from tuneval.report.legend import legend_key
from tuneval.report.parts.summary import memory_text, share, speed_text
from tuneval.report.records import Step
from tuneval.report.words import Words


def training_section(gathered: Gathered, t: Words) -> Section:
    """Curves of every run in common figures, and the key figures run by run."""
    runs = [(i, run) for i, run in enumerate(gathered.runs, 1) if run.steps]
    blocks: list[object] = [
        Text(text=f"{run.label}{t('colon')}{t('say_no_steps')}", style="note") for run in gathered.runs if not run.steps
    ]
    if runs:
        blocks += [Figures(figures=tuple(_figures(runs, t))), _key_table([run for _, run in runs], t)]
    return Section(id="training", title=t("training"), blocks=tuple(blocks))


def _figures(runs: list[tuple[int, Run]], t: Words):
    weights = dict.fromkeys(run.record.config.get("loss_reduction", "token") or "unknown" for _, run in runs)
    loss_notes = [t(f"fig_per_{weight}" if t.has(f"fig_per_{weight}") else "fig_per_unknown") for weight in weights]
    loss_notes.append(t("fig_points") if any(run.validations for _, run in runs) else t("fig_no_points"))
    yield _curve_figure("loss", runs, lambda s: s.loss, "{:g}".format, t, notes=loss_notes, smooth=True)
    yield _curve_figure("lr", runs, lambda s: s.lr, spell.rate, t, split=True, from_zero=True)
    yield _curve_figure("grad", runs, lambda s: s.grad_norm, "{:g}".format, t, split=True, smooth=True, from_zero=True)
    yield from _recorded_figures(runs, t)


def _recorded_figures(runs: list[tuple[int, Run]], t: Words):
    """What the logs of other programs may lack: speed, time, memory; each of the runs that have it."""
    speed = [(i, run) for i, run in runs if any(math.isfinite(s.tokens_per_second) for s in run.steps)]
    timed = [(i, run) for i, run in runs if all(math.isfinite(s.seconds) for s in run.steps)]
    memory = [(i, run) for i, run in runs if any(s.peak_memory_bytes for s in run.steps)]
    if speed:
        yield _curve_figure(
            "speed", speed, lambda s: s.tokens_per_second, "{:,.0f}".format, t, smooth=True, from_zero=True
        )
    if timed:
        yield _time_figure(timed, t)
    if memory:
        yield _curve_figure("memory", memory, lambda s: s.peak_memory_bytes / 2**30, "{:g}".format, t, from_zero=True)


def _curve_figure(
    name: str,
    runs: list[tuple[int, Run]],
    value: Callable[[Step], float | None],
    y_format: Callable[[float], str],
    t: Words,
    *,
    notes: list[str] | None = None,
    split: bool = False,
    smooth: bool = False,
    from_zero: bool = False,
) -> Figure:
    """One quantity of every run over its steps; `split`: a panel each where the scales differ by more than four."""
    series = []
    for i, run in runs:
        y = [math.nan if value(s) is None else float(value(s)) for s in run.steps]  # type: ignore[arg-type]
        points = [(v.step, v.loss) for v in run.validations] if name == "loss" else []
        series.append(plots.Series(label=run.label, x=[s.step for s in run.steps], y=y, colour=i, points=points))
    lanes = split and len(series) > 1 and _scales_differ(series)
    width = smoothing(max(len(s.x) for s in series)) if smooth else 1
    notes = list(notes or []) + ([t("fig_smooth", w=width)] if width > 1 else []) + ([t("fig_lanes")] if lanes else [])
    title = t(f"fig_{name}")
    return Figure(
        id=f"figure-{name}",
        title=title,
        caption=("" if t.lang == "zh" else " ").join(notes),
        alt=_alt(title, series, y_format, t("step_axis"), t),
        svg=plots.curves(
            series, name=name, x_label=t("step_axis"), y_format=y_format, smooth=width, from_zero=from_zero, lanes=lanes
        ),
        legend=tuple(legend_key(run.label, i) for i, run in runs) if len(runs) > 1 else (),
        data=csv_text(("run", "step", name), [(one.label, x, y) for one in series for x, y in zip(one.x, one.y)]),
    )


def _time_figure(runs: list[tuple[int, Run]], t: Words) -> Figure:
    """Loss over the time spent: what a run that is faster by the step gains, shows here."""
    width = smoothing(max(len(run.steps) for _, run in runs))
    longest = max(sum(s.seconds for s in run.steps) for _, run in runs)
    unit, seconds = time_axis(longest)
    series = [
        plots.Series(
            label=run.label,
            x=[round(total / seconds, 3) for total in accumulate(s.seconds for s in run.steps)],
            y=plots.moving_mean([s.loss for s in run.steps], width).tolist(),
            colour=i,
        )
        for i, run in runs
    ]
    return Figure(
        id="figure-time",
        title=t("fig_time"),
        caption=t("fig_time_note", w=width) if width > 1 else t("fig_time_raw"),
        alt=_alt(t("fig_time"), series, "{:.2f}".format, t(unit), t),
        svg=plots.curves(series, name="time", x_label=t(unit), y_format="{:g}".format),
        legend=tuple(legend_key(run.label, i) for i, run in runs) if len(runs) > 1 else (),
        data=csv_text(
            ("run", unit.removesuffix("_axis") + "s", "mean loss"),
            [(one.label, x, y) for one in series for x, y in zip(one.x, one.y)],
        ),
    )


def _scales_differ(series: list[plots.Series]) -> bool:
    middles = [median([abs(y) for y in s.y if math.isfinite(y)] or [0.0]) for s in series]
    return min(middles) > 0 and max(middles) > 4 * min(middles)


def _alt(title: str, series: list[plots.Series], y_format: Callable[[float], str], unit: str, t: Words) -> str:
    parts = []
    for one in series:
        good = [(x, y) for x, y in zip(one.x, one.y) if math.isfinite(y)]
        if good:
            (x0, y0), (x1, y1) = good[0], good[-1]
            values = {"x0": x0, "y0": y_format(_four(y0)), "x1": x1, "y1": y_format(_four(y1)), "unit": unit}
            parts.append(t("alt_curve_part", label=one.label, **values))
    return t("alt_curve", title=title, parts=t("semicolon").join(parts) or t("missing"))


def _four(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def _key_table(runs: list[Run], t: Words) -> Table:
    columns = [_key_column(run, t) for run in runs]
    rows = tuple((name, *(column[name] for column in columns)) for name in columns[0])
    return Table(title=t("tab_key"), head=(t("item"), *(run.label for run in runs)), rows=rows)


def _count(n: int, t: Words) -> str:
    """A log that does not say leaves 0."""
    return f"{n:,}" if n else t("missing")


def _key_column(run: Run, t: Words) -> dict[str, str]:
    trained = curve(run.steps)
    assert trained is not None
    validations = [spell.loss(v.loss) for v in (run.validations[:1] + run.validations[-1:])]
    total, trainable = run.record.parameters.get("total"), run.record.parameters.get("trainable")
    parameters = f"{trainable:,} ({share(trainable, total)})" if total and trainable is not None else t("missing")
    return {
        t("trainable"): parameters,
        t("steps"): f"{trained.steps:,}\u00a0/\u00a0{run.record.train_iters:,}",
        t("loss_first"): spell.loss(trained.first),
        t("loss_last"): spell.loss(trained.last),
        t("val_loss"): " → ".join(dict.fromkeys(validations)) or t("no_validation"),
        t("max_grad"): t("missing") if trained.max_grad_norm is None else spell.number(float(trained.max_grad_norm)),
        t("seen_samples"): _count(trained.samples, t),
        t("seen_tokens"): _count(trained.tokens, t),
        t("seen_trained"): _count(trained.trained_tokens, t),
        t("wall_time"): t.seconds(trained.seconds),
        t("median_speed"): speed_text(trained.tokens_per_second, t),
        t("peak_memory"): memory_text(trained.peak_memory_bytes, t),
    }
