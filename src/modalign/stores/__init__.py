"""Vector stores that somebody else made: read and searched, never written to.

`open_store("lancedb:FOLDER#TABLE")` opens one from its spec, KIND:PATH[#COLLECTION][?option=value
&...]. Whatever the kind, `Store` is all there is to know of it.
"""

from modalign.stores.contract import Store, check_cosine, length_spread
from modalign.stores.registry import KINDS, StoreSpec, open_store

__all__ = ["KINDS", "Store", "StoreSpec", "check_cosine", "length_spread", "open_store"]
