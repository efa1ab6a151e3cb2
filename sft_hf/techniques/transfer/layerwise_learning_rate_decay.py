"""Layer-wise learning rate decay."""

from __future__ import annotations

from torch import nn

from sft_hf.models.layers import layer_depths
from sft_hf.techniques.base import Technique
from sft_hf.techniques.transfer.settings import LayerwiseLearningRateDecaySettings


def decayed(depths: dict[str, int], decay: float) -> dict[str, float]:
    """Return the factor of each parameter's learning rate, decay^(D - d), for depths d with maximum D.

    Source: J. Howard and S. Ruder, Universal Language Model Fine-tuning for Text Classification, 2018, section 3.2
    (there eta^(l-1) = eta^l / 2.6); the code of H. Bao et al., BEiT, 2021; timm's `param_groups_layer_decay`.
    """
    top = max(depths.values())
    return {name: decay ** (top - depth) for name, depth in depths.items()}


class LayerwiseLearningRateDecay(Technique[LayerwiseLearningRateDecaySettings]):
    """Use lower learning rates for lower layers, whose features are more general.

    The head uses the recipe's rate, each layer `decay` times that of the layer above, and embeddings or the stem the
    lowest. A final norm or pooler belongs to the top layer. Whisper's encoder and decoder are each counted from their
    own top. No extra cost; useful for few rows and deep models. optim.learning_rate can be a little higher.
    """

    paper = (
        "J. Howard and S. Ruder, Universal Language Model Fine-tuning for Text Classification, 2018, section 3.2; "
        "K. Clark et al., ELECTRA, 2020, fine-tuning; H. Bao et al., BEiT, 2021, fine-tuning"
    )
    allows_frozen_features = True

    def learning_rate_scales(self, model: nn.Module) -> dict[str, float]:
        """See `decayed`."""
        return decayed(layer_depths(model), self.settings.decay)
