"""Features: encoded once, stored by content, read at random.

`encode_items` fills a `FeatureStore` with what it lacks and returns a `FeatureTable`, the
features of the items in their order.
"""

from modalign.features.encoding import EncodedItems, cache_folder, encode_items
from modalign.features.store import FeatureArray, FeatureRows, FeatureStore, FeatureTable

__all__ = [
    "EncodedItems",
    "FeatureArray",
    "FeatureRows",
    "FeatureStore",
    "FeatureTable",
    "cache_folder",
    "encode_items",
]
