"""`convert --check`: how far a result's predictions are from its source's, for people, scripts and
the card."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import DataError, SmolVLMError, escaped
from .options import Loading

if TYPE_CHECKING:
    from ..checkpoint.card import Figures
    from ..checkpoint.convert import Report
    from ..data.rows import Row
    from ..quality.report import QualityReport

Check = Annotated[
    bool,
    typer.Option(
        "--check",
        help="Compare the result's predictions with the source's, by kind of prompt; exit code 1 "
        "where it is broken.",
    ),
]
CheckData = Annotated[
    str | None,
    typer.Option(
        "--check-data",
        metavar="FILE",
        help="Compare on your own questions with answers, as `finetune` and `evaluate` take them; "
        "means --check.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print sizes and figures as one JSON object.")]


def check_rows(data: str | None) -> "Sequence[Row]":
    """Rows to compare on, of which one at least has a question and an answer; read before the
    conversion, which may take long."""
    if data is None:
        return ()
    from ..data.rows import read_rows
    from ..data.samples import make_sample

    rows, problem = read_rows(data), ""
    for row in rows:
        try:
            make_sample(row)
            return rows
        except SmolVLMError as error:
            problem = problem or f"{row.where}: {error}"
    raise DataError(f"{data}: no row can be compared on; {problem}")


def check_result(
    report: "Report", source: str, loading: Loading, rows: "Sequence[Row]"
) -> "QualityReport":
    """Compare a result with what it was made from."""
    from ..quality.report import check_in_steps
    from .show import count_bar, follow

    steps = check_in_steps(
        source, report.out, revision=loading.revision, adapter=loading.adapter, rows=rows
    )
    try:
        return follow(steps, count_bar("Comparing"))
    except KeyboardInterrupt:
        where = f"{report.out} is complete, and its comparison is not"
        print(f"\nsmolvlm-mlx: {escaped(where)}", end="", file=sys.stderr)
        raise


def figures_of(report: "QualityReport") -> "Figures":
    """What the card says of it."""
    kinds = (*report.kinds.items(), ("all", report.total))
    return {"verdict": report.verdict} | {
        f"{kind}, {figures.positions:,} positions": f"mean KL {figures.kl_mean:.2g} nats, median "
        f"{figures.kl_median:.2g}, 99 % {figures.kl_p99:.2g}; changed top tokens "
        f"{figures.changed:.1%}; perplexity {figures.result_perplexity:.4g}, the source's "
        f"{figures.source_perplexity:.4g}"
        for kind, figures in kinds
    }


def print_json(report: "Report", quality: "QualityReport | None") -> None:
    """Sizes, and figures if there are some, as one JSON object."""
    parts = {
        part: {"parameters": count, "bytes": size} for part, (count, size) in report.parts.items()
    }
    sizes = {"out": str(report.out), "source_bytes": report.source_bytes}
    sizes |= {"bytes": report.out_bytes, "bits_per_weight": report.bits_per_weight, "parts": parts}
    if report.drift is not None:
        sizes["drift"] = report.drift
    whole = sizes if quality is None else {**sizes, "quality": quality.to_json()}
    print(json.dumps(whole, indent=2))


def print_quality(report: "QualityReport") -> None:
    """How far the result's predictions are from the source's."""
    from .show import console, print_rows, table

    shown = table(
        "prompts", "positions", "mean KL", "median", "99 %", "changed", "perplexity", "source's"
    )
    for kind, figures in (*report.kinds.items(), ("all", report.total)):
        kls = (figures.kl_mean, figures.kl_median, figures.kl_p99)
        perplexities = (figures.result_perplexity, figures.source_perplexity)
        shown.add_row(
            kind,
            f"{figures.positions:,}",
            *(f"{kl:.2g}" for kl in kls),
            f"{figures.changed:.1%}",
            *(f"{perplexity:.4g}" for perplexity in perplexities),
        )
    console().print(shown)
    print_rows(report.skipped, "are left out of the comparison")
    if report.left_out:
        print(f"left out: {', '.join(report.left_out)} (this model does not take it)")
    print(_verdict(report))


def _verdict(report: "QualityReport") -> str:
    """What to think of it, in a line."""
    kl = f"mean KL {report.kinds[report.worst].kl_mean:.2g} nats on {report.worst} prompts"
    return {
        "good": f"good: {kl}; answers are the source's as a rule",
        "fair": f"fair: {kl}; some answers differ from the source's",
        "poor": f"POOR: {kl}; many answers differ from the source's. More bits, --target-kl or "
        "--recipe 8bit help",
        "broken": "BROKEN: predictions are not finite numbers; do not use this result",
    }[report.verdict]
