"""Features: what is known of units and layers without measuring damage, one group of columns in each file."""

from autolabel.features.activations import ActivationFeatures
from autolabel.features.criteria import CriteriaFeatures
from autolabel.features.layers import LayerFeatures
from autolabel.features.quantization import QuantizationFeatures
from autolabel.features.redundancy import RedundancyFeatures
from autolabel.features.saliency import SaliencyFeatures
from autolabel.features.structure import StructureFeatures
from autolabel.features.weights import WeightFeatures

__all__ = [
    "ActivationFeatures",
    "CriteriaFeatures",
    "LayerFeatures",
    "QuantizationFeatures",
    "RedundancyFeatures",
    "SaliencyFeatures",
    "StructureFeatures",
    "WeightFeatures",
]
