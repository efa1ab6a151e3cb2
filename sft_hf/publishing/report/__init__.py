"""report.html of a run, and the comparison of several runs: self-contained HTML without scripts."""
