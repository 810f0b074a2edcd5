"""docs/passes.md is true: its code runs, its table is the pipeline, its IR text parses."""

from __future__ import annotations

import re
from pathlib import Path

from effc.ir.text import parse, to_text
from effc.passes.pipeline import Options, default

TEXT = (Path(__file__).parents[3] / "docs" / "passes.md").read_text()


def test_the_recipe_runs() -> None:
    code = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(code) == 2
    exec(compile("\n".join(code), "docs/passes.md", "exec"), {"__name__": "recipe"})


def test_the_text_form_is_shown_as_it_is() -> None:
    shown = re.search(r"```\n(graph main.*?)```", TEXT, re.DOTALL)
    assert shown is not None and to_text(parse(shown[1])) == shown[1]


def test_the_table_lists_the_pipeline_in_order() -> None:
    table = TEXT[: TEXT.index("`memory/plan.py`")]
    listed = [n for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for n in re.findall(r"`(\w+)`", row)]
    names = list(dict.fromkeys(p.name for p in default(Options(native=lambda op: True))))
    order = [n for n in names if n != "dce"]  # which stands in several places
    assert [n for n in listed if n in order] == order
    assert set(names) <= set(listed), set(names) - set(listed)
    assert len(listed) == len(set(listed))
