"""What a score is compared with: answers that need no fine-tuning, to the same rows; see `compare`."""
