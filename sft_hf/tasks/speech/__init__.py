"""Speech recognition: Whisper-style and CTC models."""
