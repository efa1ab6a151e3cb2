"""The entry of `accelerate launch`: accelerate launch scripts/finetune.py --recipe text [KEY=VALUE ...]."""

import sys

from sft_hf.cli import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
