"""Learning what to compress: features, measured damages, labelers, and the whole road in one call."""

from autolabel.extraction import extract_features, extract_layer_features
from autolabel.feature import describe_features
from autolabel.labelers import GBDTLabeler, MeanLabeler, MLPLabeler, RidgeLabeler
from autolabel.learning import Learned, learn_labels
from autolabel.measuring import measure
from autolabel.oracles import LayerChoiceOracle, RemovalOracle
from autolabel.pipeline import Compressed, auto_compress
from autolabel.tables import FeatureTable, LabelTable

__all__ = [
    "Compressed",
    "FeatureTable",
    "GBDTLabeler",
    "LabelTable",
    "LayerChoiceOracle",
    "Learned",
    "MLPLabeler",
    "MeanLabeler",
    "RemovalOracle",
    "RidgeLabeler",
    "auto_compress",
    "describe_features",
    "extract_features",
    "extract_layer_features",
    "learn_labels",
    "measure",
]
