"""The results, as a table and as a picture."""

from pathlib import Path
from typing import Any

Row = dict[str, Any]


def table(rows: list[Row]) -> str:
    """One line for each contender: milliseconds, ratio to the reference with quartiles, first call, allocations."""
    head = f"{'':18} | {'ms':>9} | {'ratio':>6} | {'quartiles':>13} | {'first call':>10} | {'allocates':>10}"
    lines = [f"{rows[0]['workload']}, {rows[0]['rule']}: ratios to {rows[0]['reference']}", head, "-" * len(head)]
    for row in sorted(rows, key=lambda row: row["ratio"]):
        low, high = row["quartiles"]
        allocated = row["allocated_bytes"]
        shown = "" if allocated is None else f"{allocated / 1e6:.2f} MB"
        lines.append(
            f"{row['contender']:18} | {row['milliseconds']:9.3f} | {row['ratio']:6.2f} | {low:5.2f} to {high:5.2f} | "
            f"{row['first_call_seconds']:8.1f} s | {shown:>10}"
        )
    return "\n".join(lines) + "\n"


def picture(rows: list[Row], path: Path) -> None:
    """Bars of the ratios, a panel for each workload and rule; shorter is faster."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    races = list(dict.fromkeys((row["workload"], row["rule"]) for row in rows))
    columns = min(3, len(races))
    height = -(-len(races) // columns)
    figure, panels = plt.subplots(height, columns, figsize=(5.2 * columns, 2.8 * height), squeeze=False)
    for panel in panels.flat[len(races) :]:
        panel.set_axis_off()
    for panel, race in zip(panels.flat, races):
        shown = [row for row in rows if (row["workload"], row["rule"]) == race]
        shown.sort(key=lambda row: row["ratio"], reverse=True)
        ours = ["funcopt" in row["contender"] for row in shown]
        panel.barh(
            [row["contender"] for row in shown],
            [row["ratio"] for row in shown],
            color=["#0072b2" if mine else "#bbbbbb" for mine in ours],
            xerr=[
                [row["ratio"] - row["quartiles"][0] for row in shown],
                [row["quartiles"][1] - row["ratio"] for row in shown],
            ],
        )
        panel.axvline(1.0, color="#d55e00", linewidth=1)
        panel.set_xscale("log")
        panel.set_title(f"{race[0]}, {race[1]}")
        panel.set_xlabel(f"time of a step, as a ratio to {shown[0]['reference']}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
