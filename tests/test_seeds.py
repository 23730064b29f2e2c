"""`vitrail compare` of three runs or more: recipes over their seeds, intervals by SciPy."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from test_compare import write_run
from vitrail.errors import DataError, UsageError
from vitrail.report.seeds import seed_table
from vitrail.statistics import welch_interval

COUNT = 200


def recipe(folder, seeds, chance, first=0, **settings):
    """Runs of one configuration, right on so many of the same pictures."""
    random = np.random.default_rng(int(1000 * chance))
    return [
        write_run(folder / f"{chance}-{seed}", random.random(COUNT) < chance, run={
            "training": {"epochs": 3.0, "seed": seed}, "why": [f"seed {seed}"], "optimizer": {"lr": 0.1, **settings}})
        for seed in range(first, first + seeds)
    ]  # fmt: skip


def shares(rows):
    return [run["top1"] for run in rows["runs"]]


def test_recipes_over_their_seeds(tmp_path, vitrail_command):
    """The seed and the words of a recipe do not matter; everything else makes another one."""
    good, bad, single = recipe(tmp_path, 4, 0.9), recipe(tmp_path, 3, 0.5, lr=0.2), recipe(tmp_path, 1, 0.7, lr=0.3)
    found = seed_table([good[0], *bad, *good[1:], *single])
    assert [len(row["runs"]) for row in found["recipes"]] == [4, 3, 1] and found["images"] == COUNT
    assert [row["differs"] for row in found["recipes"]] == [{"optimizer.lr": lr} for lr in (0.1, 0.2, 0.3)]
    for row in found["recipes"][:2]:
        values = shares(row)
        assert (row["mean"], row["std"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert row["interval"] == pytest.approx([max(0, low), min(1, high)])
    worse, unknown = found["against_first"]
    assert worse["word"] == "worse" and unknown is None and found["recipes"][2]["interval"] is None
    assert worse["difference"] == pytest.approx(
        np.mean(shares(found["recipes"][1])) - np.mean(shares(found["recipes"][0]))
    )
    turned = seed_table([*bad, *good])["against_first"][0]
    assert turned["word"] == "better" and turned["interval"] == pytest.approx([-x for x in worse["interval"][::-1]])
    called = vitrail_command("compare", *good, *bad)
    assert called.status == 0 and "7 runs, 2 recipes" in called.out and "n = 4)" in called.out, called.err
    assert "optimizer.lr: 0.2" in called.out and ", worse" in called.out
    assert max(map(len, called.out.splitlines())) <= 80
    written = json.loads(vitrail_command("compare", *good, *bad, "--json").out)
    assert written == seed_table([*good, *bad])


def test_welch():
    """As SciPy has it, but for degrees of freedom that are rounded down; so never narrower."""
    random = np.random.default_rng(0)
    for first, second in ((2, 2), (3, 5), (10, 4), (30, 30)):
        a, b = random.normal(1, 3, first), random.normal(0, 1, second)
        found = stats.ttest_ind(a, b, equal_var=False)
        middle, error = a.mean() - b.mean(), math.sqrt(a.var(ddof=1) / first + b.var(ddof=1) / second)
        half = stats.t.ppf(0.975, max(1, math.floor(found.df))) * error
        low, high = welch_interval(a.tolist(), b.tolist())
        assert (low, high) == pytest.approx((middle - half, middle + half))
        theirs = found.confidence_interval(0.95)
        assert low <= theirs.low + 1e-9 and high >= theirs.high - 1e-9
    assert welch_interval([1.0], [1.0, 2.0]) is None and welch_interval([1.0, 1.0], [2.0, 2.0]) is None


def test_what_makes_no_table_is_refused(tmp_path, vitrail_command):
    three = recipe(tmp_path, 3, 0.9)
    with pytest.raises(UsageError, match="the recipe and the seed") as refused:
        seed_table([*three, three[0]])
    assert refused.value.code == "VT002"
    (other,) = recipe(tmp_path / "other", 1, 0.8)
    table = other / "eval" / "test" / "predictions.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(DataError, match="not measured on the same pictures") as refused:
        seed_table([*three, other])
    assert refused.value.code == "VT028"
    table.write_text(table.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError, match="same pictures"):
        seed_table([other])
    for arguments, code in ((("--out", tmp_path / "page.html"), "VT002"), (("--split", "val"), "VT027")):
        called = vitrail_command("compare", *three, *arguments)
        assert called.status != 0 and code in called.err and not (tmp_path / "page.html").exists()


def test_runs_of_versions_that_wrote_down_less(tmp_path):
    """A key that another run has not: said, not taken for the same recipe."""
    new, old = recipe(tmp_path, 2, 0.9), recipe(tmp_path, 2, 0.8, first=2)
    for run in old:
        config = json.loads((run / "config.json").read_text())
        del config["run"]["optimizer"]["lr"]
        (run / "config.json").write_text(json.dumps(config))
    first, second = seed_table([*new, *old])["recipes"]
    assert first["differs"] == {"optimizer.lr": 0.1} and second["differs"] == {"optimizer.lr": "not said"}
