"""Learning what to compress: features, measured damages, labelers, and the whole road in one call."""

from autolabel.allocators import LearnedSearchAllocator
from autolabel.explanation import explain, explain_layer, relatives
from autolabel.extraction import extract_features, extract_layer_features
from autolabel.feature import describe_features
from autolabel.label_bank import LabelBank
from autolabel.labelers import GBDTLabeler, MeanLabeler, MLPLabeler, RidgeLabeler
from autolabel.learning import Learned, learn_labels
from autolabel.measuring import measure
from autolabel.oracles import (
    ContextOracle,
    LayerChoiceOracle,
    RemovalOracle,
    RepairedLayerChoiceOracle,
    RepairedOracle,
)
from autolabel.pipeline import Compressed, auto_compress
from autolabel.plan_oracle import PlanBench, PlanOracle
from autolabel.plan_race import PlanRace
from autolabel.plan_sampling import sample_plans
from autolabel.plan_search import PlanSearch
from autolabel.plan_summary import PlanSummarizer
from autolabel.pretrained import load_plan_labeler
from autolabel.tables import FeatureTable, LabelTable

__all__ = [
    "Compressed",
    "ContextOracle",
    "FeatureTable",
    "GBDTLabeler",
    "LabelBank",
    "LabelTable",
    "LayerChoiceOracle",
    "Learned",
    "LearnedSearchAllocator",
    "MLPLabeler",
    "MeanLabeler",
    "PlanBench",
    "PlanOracle",
    "PlanRace",
    "PlanSearch",
    "PlanSummarizer",
    "RemovalOracle",
    "RepairedLayerChoiceOracle",
    "RepairedOracle",
    "RidgeLabeler",
    "auto_compress",
    "describe_features",
    "explain",
    "explain_layer",
    "extract_features",
    "extract_layer_features",
    "learn_labels",
    "load_plan_labeler",
    "measure",
    "relatives",
    "sample_plans",
]
