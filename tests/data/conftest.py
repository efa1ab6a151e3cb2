"""What several tests of data need."""

from __future__ import annotations

import datasets
import pytest


@pytest.fixture
def own_datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
