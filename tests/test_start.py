"""What the page begins with: a setting for each option, in the kind of field that asks for it."""

import re

from smolvlm_mlx import Options
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.server.start import Start
from tests.support.changes import EVERY

KINDS = {
    "flag": {"split", "end_loops"},
    "texts": {"stop"},
    "whole": {"max_tokens", "top_k", "repetition_context", "seed", "longest_edge", "max_tiles"},
    "number": {
        "temperature",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    },
}


def test_each_option_is_asked_for_by_its_kind() -> None:
    start = Start(("seed", "split"), options=Options(seed=3, end_loops=True))
    told = start.to_json(Options(seed=3), ImageOptions(max_tiles=4))
    settings = told["settings"]
    assert isinstance(settings, list)
    kinds = {name: kind for kind, names in KINDS.items() for name in names}
    assert {each["name"]: each["kind"] for each in settings} == kinds
    assert [each["name"] for each in settings if each["typed"]] == ["seed", "split"]
    assert [each["name"] for each in settings if each["said"]] == ["end_loops"]
    values = {**vars(start.options), **vars(ImageOptions(max_tiles=4))}
    help = {option.name: option.help for option in EVERY}
    for each in settings:
        assert (each["value"], each["help"]) == (values[each["name"]], help[each["name"]])


def test_each_run_has_a_name() -> None:
    assert re.fullmatch("[0-9a-f]{16}", Start().run)
    assert Start().run != Start().run
