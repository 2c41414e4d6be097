"""A k x 1 conv to few channels, then a 1 x k conv."""

from compress.errors import PlanError
from compress.patches import LinearMap


class SpatialFactorizer:
    """The first conv works along the first spatial dimension, the second along the others.

    Jaderberg, Vedaldi, Zisserman 2014, "Speeding up convolutional neural networks with low rank expansions" (BMVC,
    arXiv:1405.3866), scheme 2.
    """

    name = "spatial"

    def first_dims(self, how: LinearMap) -> tuple[int, ...]:
        if how.dims < 2:
            raise PlanError("it has fewer than two spatial dimensions to divide; the scheme 'channel' needs none")
        return (0,)
