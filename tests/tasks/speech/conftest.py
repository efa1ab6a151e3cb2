"""Checkpoints of both families of recognizers."""

from __future__ import annotations

import pytest


@pytest.fixture
def checkpoints(whisper_checkpoint, wav2vec2_checkpoint):
    return {"whisper": str(whisper_checkpoint), "wav2vec2": str(wav2vec2_checkpoint)}
