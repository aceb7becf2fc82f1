# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""benchmarks/unmask_policy.py: its cells, and its tables by hand."""

import json
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def row(curve, setting, accuracy, passes):
    numbers = {"accuracy": accuracy, "accuracy_low": accuracy, "accuracy_high": accuracy, "forward_passes": passes}
    others = {
        "unmasking": curve,
        "seeds": [],
        "num_problems": 4,
        "tokens_per_pass": 1.0,
        "length": 1.0,
        "seconds": 0.0,
    }
    return {"curve": curve, "setting": setting, **numbers, **others}


def policy(alpha, seed, drawn, sure, variant="", collapsed=False):
    settings = {"task": "sudoku", "alpha": alpha, "variant": variant, "seed": seed, "num_test": 4}
    rows = [row("policy", "policy_beta=1.0", *drawn), row("policy", "policy_temperature=0.0", *sure)]
    about = {"best_step": 20, "collapsed": collapsed, "cpu_seconds_per_update": 0.5, "threads": 1}
    return {"settings": settings, "rows": rows, **about}


RULES = [
    row("threshold", "threshold=0.9", 0.4, 2.0),
    row("threshold", "threshold=0.99", 0.8, 4.0),
    row("factor", "factor=1.0", 0.5, 2.0),
    row("low_confidence", "num_denoising_steps=17", 0.9, 17.0),
    row("random", "num_denoising_steps=17", 0.3, 17.0),
    row("entropy_bounded", "entropy_bound=1.0", 0.1, 1.0),
]


def test_the_report_compares_policies_with_the_best_rule_at_as_many_passes(tmp_path):
    from unmask_policy_report import write_report

    cells = {
        "policy-a-1": policy(1.0, 1, (0.67, 3.0), (0.5, 2.0)),
        "policy-a-2": policy(1.0, 2, (0.54, 3.0), (0.4, 2.0)),
        "policy-x-1": policy(1.0, 1, (0.1, 1.0), (0.1, 1.0), "additive", collapsed=True),
        "heuristics-sudoku": {"settings": {"environment": "sudoku"}, "rows": RULES},
        "transfer-s": {
            "settings": {"task": "sudoku", "alpha": 1.0, "environment": "sudoku"},
            "rows": policy(1.0, 1, (0.5, 2.0), (0.5, 2.0))["rows"],
        },
    }
    for name, cell in cells.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(cell))
    report = write_report(tmp_path, tmp_path / "figures")
    # At 3 passes the threshold's line has 0.6, between 0.4 at 2 and 0.8 at 4; at 2 passes the factor rule has 0.5.
    assert "| 1 | drawn | 2 | 0.605 ± 0.092 | 3.00 ± 0.00 | 0.600 ± 0.000 | 1.01 ± 0.15 | 0.5 ± 9.2 |" in report
    assert "| 1 | τ = 0 | 2 | 0.450 ± 0.071 | 2.00 ± 0.00 | 0.500 ± 0.000 | 0.90 ± 0.14 | -5.0 ± 7.1 |" in report
    assert "reaches 1.12 × the best rule's accuracy at as many passes (3.00); the worst is 10.0 points below" in report
    assert "| additive | 1 | 1 | 20 | 1 | 0.100 | 1.00 | 0.100 | 1.00 | 0.0 |" in report
    assert "| sudoku | 1 | sudoku | 0.500 | 2.00 | 0.500 | 1.00 | 0.0 |" in report
    assert (tmp_path / "figures" / "unmask_policy_sudoku.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="lacks cells of policies or of rules"):
        write_report(tmp_path / "nothing", tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_cell_trains_and_measures_a_policy_and_keeps_it(tmp_path, monkeypatch):
    import unmask_policy_cells as cells
    import unmask_policy_points as points

    monkeypatch.setattr(points, "BETAS", (1.0,))
    monkeypatch.setattr(points, "MEASURED_SEEDS", (1,))
    monkeypatch.setitem(cells.SETTINGS["sudoku"]["training"], "per_device_train_batch_size", 16)
    cell = cells.PolicyCell("sudoku", 0.3, 1, num_test=4, steps=2)
    result = cell.measure(tmp_path)
    assert result["settings"]["training"]["max_steps"] == 2 and len(result["rows"]) == 2
    assert all(1 <= point["forward_passes"] <= 17 for point in result["rows"])
    moved = cells.TransferCell("sudoku", 0.3, "sudoku-weak", num_test=4).measure(tmp_path)
    assert [point["setting"] for point in moved["rows"]] == ["policy_beta=1.0", "policy_temperature=0.0"]
    with pytest.raises(FileNotFoundError, match="run `--part policies --seeds 1` first"):
        cells.TransferCell("sudoku", 10.0, "sudoku-weak").measure(tmp_path)


def test_the_parts_have_the_cells_that_their_tables_need():
    from unmask_policy import PARTS, wanted
    from unmask_policy_points import ENVIRONMENTS, TRANSFER

    found = wanted(list(PARTS), ["sudoku", "arithmetic"], [1, 2, 3], 256, None)
    names = [cell.name for cell in found]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("policy-") and "additive" not in name and "expert" not in name for name in names) == 24
    used = {environment for environments in TRANSFER.values() for environment in environments}
    assert {f"heuristics-{name}" for name in used | {"sudoku", "arithmetic", "sudoku-weak"}} <= set(names)
    assert used <= set(ENVIRONMENTS)
