"""How dimensions pass through each operation: one rule per kind of operation, none per architecture."""

from compress.rules import contraction, elementwise, normalization, opaque, views
from compress.rules.views import RESHAPES

__all__ = ["RESHAPES", "contraction", "elementwise", "normalization", "opaque", "views"]
