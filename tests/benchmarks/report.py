"""The results as tables on the terminal and in a page, and as a picture."""

from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import PACKED
from tests.benchmarks.measure import Race
from tests.benchmarks.targets import BEST_OF_TORCH, Results, verdicts

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
OURS, THEIRS, LIMIT = "#0072b2", "#b8b8b8", "#d55e00"
REFERENCES = ("torch fused", "torch foreach", "torch compiled, fused AdamW", "torch sequential", "torch loop")


def reference(race: Race) -> str:
    """The contender that ratios are given to: torch's fastest kind, or whoever is first."""
    return next((name for name in REFERENCES if name in race.timings), next(iter(race.timings)))


def by_ratio(race: Race) -> list[tuple[str, float, float, float]]:
    """Contenders with lower quartile, median and upper quartile of their ratios, fastest first."""
    rows = [(name, *(race.ratio(name, reference(race)) or ())) for name in race.timings]
    return sorted(rows, key=lambda row: row[2])


def table(race: Race) -> str:
    """One line for each contender."""
    head = f"{'':28} | {'ms':>10} | {'ratio':>8} | {'quartiles':>18} | {'first call':>10} | {'graphs':>6} | {'peak':>9}"
    lines = [f"{race.kind}: {race.workload}, {race.rule}: ratios to {reference(race)}", head, "-" * len(head)]
    for name, low, middle, high in by_ratio(race):
        timing = race.timings[name]
        peak = "" if timing.peak is None else f"{timing.peak / 1e6:.2f} MB"
        lines.append(
            f"{name:28} | {timing.median:10.3f} | {middle:8.3g} | {low:8.3g} to {high:6.3g} | "
            f"{timing.first:8.1f} s | {timing.graphs:6} | {peak:>9}"
        )
    return "\n".join(lines) + "\n"


def summary(results: Results) -> str:
    """The targets, on the terminal."""
    return "\n".join(
        f"{'met ' if one.met else 'MISS'}  {one.figure:60} {one.where:12} {one.value:8.3g}{one.unit} "
        f"(target {one.target:g}{one.unit})"
        for one in verdicts(results)
    )


# -------------------------------------------------------------------------------------------------------- the page


def write_page(results: Results, page: Path, picture_name: str) -> None:
    """Put tables and picture between the two marks of a page, in place of what stands there.

    Raises:
        ValueError: the page has no such marks, or has them twice or in another order.
    """
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{page}: expected the lines {BEGIN} and {END}, once each and in this order.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{markdown(results, picture_name)}\n{END}{after}")


def markdown(results: Results, picture_name: str) -> str:
    facts = results["facts"]
    parts = [
        f"Measured with torch {facts['torch']} on {facts['threads']} threads of {facts['processor']}, "
        f"{facts['bandwidth'] / 1e9:.1f} GB/s; {facts['turns']} turns of {facts['seconds_a_turn']:g} s.",
        f"![Times as ratios, and compile times]({picture_name})",
        _table_of_targets(results),
    ]
    if any(race.kind == "step" and race.rule == "adamw" for race in results["races"]):
        parts += [
            "adamw, every contender: median milliseconds of a step, and megabytes that it holds at its peak beyond "
            "what was there.",
            _table_of_times(results["races"]),
        ]
    return "\n\n".join(parts)


def _table_of_targets(results: Results) -> str:
    lines = ["| figure | where | measured | quartiles | target | |", "|---|---|---|---|---|---|"]
    for one in verdicts(results):
        quartiles = "" if one.low == one.high else f"{one.low:.3g} to {one.high:.3g}"
        lines.append(
            f"| {one.figure} | {one.where} | {one.value:.3g}{one.unit} | {quartiles} | {one.target:g}{one.unit} | "
            f"{'met' if one.met else '**missed**'} |"
        )
    return "\n".join(lines)


def _table_of_times(races: list[Race]) -> str:
    chosen = [race for race in races if race.kind == "step" and race.rule == "adamw"]
    names = list(dict.fromkeys(name for race in chosen for name in race.timings))
    lines = [
        f"| | {' | '.join(race.workload for race in chosen)} |",
        "|---" * (len(chosen) + 1) + "|",
    ]
    return "\n".join(lines + [f"| {name} | {' | '.join(_cell(race, name) for race in chosen)} |" for name in names])


def _cell(race: Race, name: str) -> str:
    if name not in race.timings:
        return ""
    timing = race.timings[name]
    return f"{timing.median:.3g}" + ("" if timing.peak is None else f" ({timing.peak / 1e6:.1f} MB)")


# ----------------------------------------------------------------------------------------------------- the picture


def picture(results: Results, path: Path) -> None:
    """A panel for each workload with adamw, each rule against the best of torch, compile times, training, sweeps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    races: list[Race] = results["races"]
    shown = [race for race in races if race.kind != "step" or race.rule == "adamw"]
    panels = [(lambda axes, race=race: _bars(axes, race)) for race in shown]
    if len({race.rule for race in races if race.kind == "step"}) > 1:
        panels.append(lambda axes: _rules(axes, [race for race in races if race.kind == "step"]))
    if results["compile"]:
        panels.append(lambda axes: _compile_times(axes, results["compile"]))
    columns = min(3, len(panels))
    height = -(-len(panels) // columns)
    figure, grid = plt.subplots(height, columns, figsize=(5.6 * columns, 3.1 * height), squeeze=False)
    for axes, draw in zip(grid.flat, panels):
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _colour(name: str) -> str:
    return OURS if "funcopt" in name else LIMIT if name == "memory limit" else THEIRS


def _bars(axes: Any, race: Race) -> None:
    """Bars of ratios, with quartiles; each is labelled with its ratio and its time."""
    rows = by_ratio(race)[::-1]
    names, low, middle, high = ([row[i] for row in rows] for i in range(4))
    errors = [[m - q for m, q in zip(middle, low)], [q - m for m, q in zip(middle, high)]]
    axes.barh(names, middle, color=[_colour(name) for name in names], xerr=errors, error_kw={"ecolor": "#555555"})
    axes.set_xscale("log")
    axes.set_xlim(min(low) / 1.6, max(high) * (max(high) / min(low)) ** 0.3 * 1.5)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    for place, (name, value, top) in enumerate(zip(names, middle, high)):
        label = f"  {value:.2g}   ({_duration(race.timings[name].median)})"
        axes.text(top, place, label, va="center", fontsize=7.5)
    axes.axvline(1.0, color="#555555", linewidth=0.8, linestyle=":")
    titles = {"training": "whole training step, ", "sweep": "1000 configurations on "}
    axes.set_title(f"{titles.get(race.kind, '')}{race.workload}, {race.rule}", fontsize=10)
    axes.set_xlabel(f"time as a ratio to {reference(race)}", fontsize=8)
    axes.tick_params(labelsize=8)


def _duration(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.3g} s" if milliseconds >= 1e3 else f"{milliseconds:.3g} ms"


def _rules(axes: Any, races: list[Race]) -> None:
    workloads = [name for name in dict.fromkeys(race.workload for race in races) if not name.startswith("leaves")]
    rules = list(dict.fromkeys(race.rule for race in races))
    for place, workload in enumerate(workloads):
        points = []
        for race in (race for race in races if race.workload == workload):
            best = race.fastest(BEST_OF_TORCH)
            measured = race.ratio(PACKED, best) if best else None
            if measured:
                points.append((rules.index(race.rule) + 0.12 * (place - (len(workloads) - 1) / 2), measured[1]))
        if points:
            axes.plot(*zip(*points), "osD^vP*X"[place % 8], label=workload, markersize=6)
    axes.axhline(1.0, color="#555555", linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xticks(range(len(rules)), rules, fontsize=8)
    axes.set_ylabel("ratio", fontsize=8)
    axes.set_title("funcopt packed / the best of torch.optim", fontsize=10)
    axes.legend(fontsize=7, ncols=2)
    axes.tick_params(labelsize=8)


def _compile_times(axes: Any, rows: list[dict[str, Any]]) -> None:
    names = [f"{row['workload']}, {row['contender'].removeprefix('funcopt ')}" for row in rows][::-1]
    places = range(len(names))
    axes.barh([place + 0.2 for place in places], [row["cold"] for row in rows][::-1], 0.38, color=OURS, label="cold")
    warm = [row["warm"] for row in rows][::-1]
    axes.barh([place - 0.2 for place in places], warm, 0.38, color="#9ecae1", label="warm")
    axes.set_yticks(places, names, fontsize=8)
    axes.set_xlabel("seconds of the first call", fontsize=8)
    axes.set_title("compile time of adamw", fontsize=10)
    axes.legend(fontsize=7)
    axes.tick_params(labelsize=8)
