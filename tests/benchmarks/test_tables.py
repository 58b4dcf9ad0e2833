"""Bounds, tables, and the documents that they go to."""

from __future__ import annotations

import pytest

from benchmarks import paper
from benchmarks.emulator import PROFILES
from benchmarks.harness.document import DOCS, DOCUMENTS, fill, tables_of
from benchmarks.harness.report import Table, goal
from benchmarks.harness.services import ROOT
from benchmarks.links import bound_s
from benchmarks.many import Figure
from benchmarks.scale import evenly
from broker.transport.topology import DEFAULT_SHARDS, shard_of

TABLE = Table("Speed", ["system", "ms", "goal"], [["ours", "1.5", goal("≤ 2", True)], ["a|b", "+3", ""]])


def test_a_table_keeps_its_columns_in_markdown() -> None:
    lines = TABLE.markdown().splitlines()
    assert lines[2:] == [
        "| system | ms | goal |",
        "| --- | --: | --- |",
        "| ours | 1.5 | ≤ 2: met |",
        "| a\\|b | +3 |  |",
    ]


def test_figures_replace_what_stood_between_the_markers_only() -> None:
    kept = {"about": {"cores": 2}, "tables": [{"title": "T", "head": ["a"], "rows": [["1"]]}]}
    before = "x\n<!-- bench:links -->\nold\n<!-- /bench:links -->\ny <!-- bench:many --> z"
    after = fill(before, "links", tables_of(kept))
    assert "old" not in after
    assert "| 1 |" in after
    assert fill(after, "links", tables_of(kept)) == after
    assert (after[:2], after[-24:]) == (before[:2], before[-24:])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_documents_have_places_for_figures(name: str) -> None:
    text = (ROOT / DOCS / name).read_text()
    assert text.count("<!-- bench:") == text.count("<!-- /bench:") > 0


def test_the_bound_of_a_link() -> None:
    lte = PROFILES["lte"]  # 2.5 MB/s up, 6.25 MB/s down, 0.1 s for two round trips
    assert bound_s(lte, 0.5, 2.5e6, 6.25e6) == pytest.approx(2.6)
    assert bound_s(lte, 0.5, 2.5e6, 6.25e6, 4) == pytest.approx(1.1)


def test_devices_are_spread_evenly_over_the_shards() -> None:
    names = evenly("waits", 40)
    assert len(set(names)) == 40
    assert names[:6] == evenly("waits", 6)
    for start in (0, 16):
        assert {shard_of(f"waits.{name}", DEFAULT_SHARDS) for name in names[start : start + 16]} == set(
            range(DEFAULT_SHARDS)
        )


def test_the_spread_is_of_the_stem_cut_alone() -> None:
    def figure(name: str, way: str, seconds: float) -> paper.Figure:
        return paper.Figure(network=name, batch=1, way=way, device_s=seconds, fits=True)

    one, two, three = paper.ALIKE
    others = [figure(one, "whole", 9.0), figure(one, "planner", 9.0)]
    close = [figure(one, "stem", 0.08), figure(two, "stem", 0.1), figure(three, "stem", 0.12)]
    alike, over_all = paper.spread_of([*close, *others]).rows
    assert alike[1:] == ["1", "3", "0.100", "-20% to +20%", "within ±25%: met"]
    assert over_all == ["all", *alike[1:-1], ""]
    alike, over_all = paper.spread_of([*close, figure("vgg19", "stem", 0.2)]).rows
    assert (alike[-1], over_all[2:5]) == ("within ±25%: met", ["4", "0.110", "-27% to +82%"])
    far = [figure(one, "stem", 0.2), *close[1:]]
    assert paper.spread_of(far).rows[0][-1] == "within ±25%: NOT met"


def test_fairness_is_the_share_of_devices_that_get_on() -> None:
    figure = Figure(devices=4, seconds=2.0, steps=[5, 5, 0, 0], computing_s=1.5, processor_s=1.0, cpu_s={})
    assert (figure.fairness, figure.share) == (0.5, 0.75)
