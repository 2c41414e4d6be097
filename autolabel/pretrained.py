"""The plan labeler that ships with the package (its `card.json` says what it learned from), or one of a folder."""

import logging
from pathlib import Path

from autolabel.competence import Competence
from autolabel.plan_blend import BlendPlanLabeler
from autolabel.plan_damage import PlanDamage
from autolabel.plan_labeler import PlanLabeler
from autolabel.plan_labeler_files import INDEX_FILE
from autolabel.plan_labelers import GBDTPlanLabeler, RidgePlanLabeler, SetPlanLabeler
from compress.errors import ArtifactError
from compress.files import read_json

_LOG = logging.getLogger(__name__)
PRETRAINED = Path(__file__).parent / "pretrained_plans"
# Beside it, the labeler of plans that also store layers in few bits.
FORMATTED = "formatted"
CARD_FILE = "card.json"
KINDS = {kind.name: kind for kind in (BlendPlanLabeler, GBDTPlanLabeler, RidgePlanLabeler, SetPlanLabeler)}


def load_plan_labeler(path: str | Path | None = None, formatted: bool = False) -> PlanLabeler:
    """The plan labeler in a folder that its `save` wrote; None for the pretrained one.

    Args:
        path: of the folder.
        formatted: the one in the folder `formatted/` in it, of plans that also store layers in few bits.

    Raises:
        ArtifactError: if it is missing, damaged, or of a kind that is not known.
    """
    path = _folder(path, formatted)
    index = read_json(path / INDEX_FILE)
    kind = index.get("plan_labeler") if isinstance(index, dict) else None
    if kind not in KINDS:
        raise ArtifactError(
            f"{path / INDEX_FILE} is no plan labeler of a known kind ({', '.join(KINDS)}). Got {kind!r}."
        )
    return KINDS[kind].load(path)


def load_competence(path: str | Path | None = None, formatted: bool = False) -> Competence:
    """The networks that the plan labeler in a folder learned from; None for the pretrained one.

    Raises:
        ArtifactError: if they are missing or damaged.
    """
    return Competence.load(_folder(path, formatted))


def load_plan_damage(path: str | Path | None = None) -> PlanDamage:
    """What predicts damage of whole plans in nats, beside the plan labeler in a folder; None for the pretrained one.

    Raises:
        ArtifactError: if it is missing or damaged.
    """
    return PlanDamage.load(_folder(path))


def _folder(path: str | Path | None, formatted: bool = False) -> Path:
    """Where the labeler of such plans lies; a folder that holds the other kind alone leaves this one to what ships."""
    found = PRETRAINED if path is None else Path(path)
    own, other = (found / FORMATTED, found) if formatted else (found, found / FORMATTED)
    if (own / INDEX_FILE).exists() or not (other / INDEX_FILE).exists():
        return own
    what = "also store layers in few bits" if formatted else "only remove"
    _LOG.warning("%s holds no labeler of plans that %s: the one that ships is asked.", found, what)
    return PRETRAINED / FORMATTED if formatted else PRETRAINED
