"""Entry point for `accelerate launch`: accelerate launch scripts/finetune.py --recipe text [KEY=VALUE ...]."""

import os
import sys

from sft_hf.cli import main
from sft_hf.core.signals import end_with_launcher

if __name__ == "__main__":
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # exported by the launcher
        end_with_launcher()
    main(["finetune", *sys.argv[1:]])
