"""What compression is: units, costs, plans, pruning, quantisation, recovery. Knows nothing of learning.

The public names, and the folders of implementations, are listed in `__init__.pyi` and imported when first used:
decoding a file loads no code that trains or searches.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
