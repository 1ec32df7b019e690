"""The loss curve, as a table and as a picture."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from .loop import Record


def write_curve(history: Sequence[Record], path: Path) -> None:
    """One line a step, as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Record)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in history)


def draw_curve(history: Sequence[Record], path: Path) -> bool:
    """Training and validation loss by step, as PNG; False without matplotlib, which is an extra."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([record.step for record in history], [record.loss for record in history], lw=1, label="training")
    measured = {record.step: record.validation_loss for record in history if record.validation_loss is not None}
    if measured:
        axes.plot(list(measured), list(measured.values()), marker="o", ms=3, label="validation")
    axes.set(xlabel="step", ylabel="loss (nats per token)", yscale="log")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return True
