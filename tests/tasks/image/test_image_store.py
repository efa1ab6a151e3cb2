"""Images that are kept are those that were opened, and no more are kept than may be."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import briefly
from tiers import long

from sft_hf.core.errors import DataError
from sft_hf.tasks.image import image_store
from sft_hf.tasks.image.image_store import ImageBudget, ImageStore
from sft_hf.tasks.image.images import open_image


@pytest.fixture
def paths(image_folder):
    return sorted(map(str, image_folder.rglob("*.jpg")))


@pytest.fixture
def opened(monkeypatch):
    """The images that were decoded."""
    found = []

    def counting(value, place="", *brightness):
        found.append(value)
        return open_image(value, place, *brightness)

    monkeypatch.setattr(image_store, "open_image", counting)
    return found


def pixels(image):
    return np.asarray(image)


def test_a_kept_image_is_the_opened_one_and_is_decoded_once(paths, opened):
    store = ImageStore(paths, [""] * len(paths), 2**20)
    for _ in range(3):
        for index, path in enumerate(paths):
            image = store.open(index)
            assert image.mode == "RGB" and np.array_equal(pixels(image), pixels(open_image(path)))
            image.putpixel((0, 0), (1, 2, 3))  # whoever changes his copy changes no other's
    assert opened == paths
    assert store.nbytes == sum(3 * image.width * image.height for image in map(open_image, paths))


def test_no_more_is_kept_than_the_budget_allows(paths, opened):
    store = ImageStore(paths, [""] * len(paths), 10_000)
    for _ in range(2):
        for index, path in enumerate(paths):
            assert np.array_equal(pixels(store.open(index)), pixels(open_image(path)))
    assert 5_000 < store.nbytes == sum(array.nbytes for array in store._kept.values()) <= 10_000
    assert len(opened) == 2 * len(paths) - len(store._kept)


def test_some_of_the_rows_keep_their_images_and_places(paths, opened, tmp_path):
    (tmp_path / "bad.jpg").write_text("none")
    images = [paths[0], str(tmp_path / "bad.jpg"), *paths[1:4]]
    store = ImageStore(images, [f"row {index}" for index in range(5)], 2**20)
    for index in (0, 2, 3):
        store.open(index)
    with pytest.raises(DataError, match=r"^row 1: .*bad\.jpg"):
        store.open(1)
    kept = store.only([0, 3, 4], [images[index] for index in (0, 3, 4)])
    opened.clear()
    for new, old in enumerate((0, 3, 4)):
        assert np.array_equal(pixels(kept.open(new)), pixels(open_image(images[old])))
    assert opened == [images[4]] and kept.places == ["row 0", "row 3", "row 4"]


def test_splits_share_the_bytes_and_past_ones_give_theirs_back(paths, monkeypatch):
    monkeypatch.setattr(image_store, "CACHE_BYTES", 40_000)
    budget = ImageBudget()
    first = ImageStore(paths, [""] * len(paths), budget.share())
    for index in range(len(paths)):
        first.open(index)
    budget.count(first)
    assert 25_000 < first.nbytes <= 30_000
    assert budget.share() == int(0.75 * (40_000 - first.nbytes))
    del first
    gc.collect()
    assert budget.share() == 30_000


@pytest.mark.parametrize("stream", [False, long(True)])
def test_a_run_has_the_same_bits_with_and_without_kept_images(make_image_recipe, opened, tmp_path, monkeypatch, stream):
    settings = {"train__max_steps": 5, "data__validation_fraction": 0}
    if stream:
        settings |= {"data__streaming": True, "data__stream_buffer_size": 10}
    decoded, weights = [], []
    for size in (2**30, 0):
        monkeypatch.setattr(image_store, "CACHE_BYTES", size)
        opened.clear()
        result = briefly(make_image_recipe(output_dir=str(tmp_path / str(size)), **settings))
        decoded.append(len(opened))
        weights.append(load_file(result.output_dir / "model" / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    if not stream:
        assert decoded[0] == 30 + 12  # once each
    assert decoded[0] < decoded[1]
