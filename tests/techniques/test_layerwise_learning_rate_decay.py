"""Layer-wise learning rate decay: the rates by hand, and those that the optimizer has."""

from __future__ import annotations

import pytest
from small_runs import prepared

from sft_hf.core.errors import RecipeError
from sft_hf.techniques.transfer.layerwise_learning_rate_decay import decayed


def rates(recipe):
    """Parameter -> its learning rate in the first step."""
    run = prepared(recipe)
    names = {id(parameter): name for name, parameter in run.training.model.named_parameters()}
    groups = run.training.optimizer.param_groups
    return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}


def test_each_layer_has_a_part_of_the_rate_above_it():
    # ULMFiT's own numbers: eta^(l-1) = eta^l / 2.6
    found = decayed({"embedding": 0, "first": 1, "second": 2, "head": 3}, 1 / 2.6)
    assert found["head"] == 1
    assert [found[lower] for lower in ("second", "first", "embedding")] == pytest.approx(
        [1 / 2.6, 1 / 2.6 / 2.6, 1 / 2.6 / 2.6 / 2.6]
    )


def test_the_optimizer_has_these_rates(make_recipe):
    recipe = make_recipe(
        techniques=[{"name": "layerwise_learning_rate_decay", "decay": 0.5}],
        optim__learning_rate=0.8,
        optim__warmup_ratio=0.0,
    )
    found = rates(recipe)
    expected = {"bert.embeddings": 0.1, "bert.encoder.layer.0": 0.2, "bert.encoder.layer.1": 0.4, "bert.pooler": 0.4}
    expected["classifier"] = 0.8
    for name, rate in found.items():
        assert rate == pytest.approx(next(value for part, value in expected.items() if name.startswith(f"{part}.")))
    assert len({round(rate, 6) for rate in found.values()}) == 4


def test_it_multiplies_with_rates_by_name(make_recipe):
    both = [
        {"name": "layerwise_learning_rate_decay", "decay": 0.5},
        {"name": "discriminative_learning_rates", "scales": {"classifier": 10, "bert.encoder.layer.1": 3}},
    ]
    found = rates(make_recipe(techniques=both, optim__learning_rate=1.0, optim__warmup_ratio=0.0))
    assert found["classifier.weight"] == pytest.approx(10)
    assert found["bert.encoder.layer.1.output.dense.weight"] == pytest.approx(1.5)
    assert found["bert.encoder.layer.0.output.dense.weight"] == pytest.approx(0.25)


@pytest.mark.parametrize("decay", [0, 1.1])
def test_a_decay_that_raises_rates_or_stops_them_is_refused(make_recipe, decay):
    with pytest.raises(RecipeError, match="layerwise_learning_rate_decay: decay"):
        make_recipe(techniques=[{"name": "layerwise_learning_rate_decay", "decay": decay}])
