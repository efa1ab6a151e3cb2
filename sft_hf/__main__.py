"""`python -m sft_hf` is `sft-hf`."""

from sft_hf.cli import main

if __name__ == "__main__":
    main()
