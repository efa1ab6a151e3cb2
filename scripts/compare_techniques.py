"""Compare a recipe with and without techniques at several seeds, in pairs.

    python scripts/compare_techniques.py text --seeds 5 --techniques '[r_drop]' '[{name: ema, decay: 0.99}]' \\
        --set 'data={name: banking77, max_train_samples: 1000}' train.num_train_epochs=20

A seed determines the training rows, their order, the new head and dropout, equally for all sets of techniques. The test
is Student's two-sided paired t-test on the differences from plain training, with Holm's correction for the number of
comparisons. The primary metric on the test split is compared; nothing is chosen on it.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from scipy.stats import ttest_rel

from sft_hf.core import console
from sft_hf.core.recipe.recipe import load_recipe
from sft_hf.jobs.finetune import finetune


def main() -> None:
    """Run every set of techniques at every seed; print the table and write JSON."""
    options = parse()
    console.set_up(quiet=True)
    logging.getLogger("sft_hf").setLevel(logging.ERROR)
    names = ["[]", *options.techniques]
    scores: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in names:
            found = score(options, name, seed)
            scores[name].append(found)
            print(f"  seed {seed}, {name}: {json.dumps(found)}", file=sys.stderr, flush=True)
    rows = compared(scores)
    print(table(rows))
    if options.output:
        about = {"options": vars(options), "scores": scores, "table": rows}
        Path(options.output).write_text(json.dumps(about, indent=1), encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe, by name or path")
    parser.add_argument(
        "--techniques", nargs="+", required=True, metavar="LIST", help="`techniques` of a recipe, as YAML"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--output", metavar="FILE", help="write all results as JSON")
    return parser.parse_args()


def score(options: argparse.Namespace, techniques: str, seed: int) -> dict[str, Any]:
    """Train once; return the primary metric on validation and test, and the seconds of training."""
    with tempfile.TemporaryDirectory(prefix="sft-hf-compare-") as folder:
        changes = [f"techniques={techniques}", f"seed={seed}", f"data.split_seed={seed}", f"output_dir={folder}/run"]
        metrics = finetune(load_recipe(options.recipe, [*options.set, "eval.baseline=none", *changes])).metrics
    primary = metrics["primary_metric"]
    splits = {role: metrics[role][primary] for role in ("validation", "test")}
    return {"metric": primary, **splits, "seconds": metrics["train"]["runtime_seconds"]}


def compared(scores: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the test scores of each set of techniques, and their differences from plain training."""
    plain = [run["test"] for run in scores["[]"]]
    rows = []
    for name, runs in scores.items():
        tests = [run["test"] for run in runs]
        differences = [a - b for a, b in zip(tests, plain, strict=True)]
        p = None if name == "[]" or len(set(differences)) == 1 else float(ttest_rel(tests, plain).pvalue)
        rows.append(
            {
                "techniques": name,
                "mean": statistics.mean(tests),
                "lowest": min(tests),
                "highest": max(tests),
                "validation": statistics.mean(run["validation"] for run in runs),
                "difference": statistics.mean(differences),
                "wins": sum(difference > 0 for difference in differences),
                "p": p,
                "seconds": statistics.median(run["seconds"] for run in runs),
            }
        )
    tested = sorted((row for row in rows if row["p"] is not None), key=lambda row: row["p"])
    worst = 0.0
    for place, row in enumerate(tested):  # S. Holm, A simple sequentially rejective multiple test procedure, 1979
        worst = max(worst, min(1.0, row["p"] * (len(tested) - place)))
        row["p_holm"] = worst
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    lines = [
        "| techniques | test, mean (lowest to highest) | difference | better in | p | p, Holm | validation | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        p, holm = (f"{row[key]:.4f}" if row.get(key) is not None else "" for key in ("p", "p_holm"))
        spread = f"{row['mean']:.4f} ({row['lowest']:.4f} to {row['highest']:.4f})"
        compared_with = f"{row['difference']:+.4f} | {row['wins']} | {p} | {holm}"
        lines.append(
            f"| `{row['techniques']}` | {spread} | {compared_with} | {row['validation']:.4f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
