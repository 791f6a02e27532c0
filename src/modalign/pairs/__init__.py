"""Reading and checking items and pairs: a table or a folder in, checked names out. No tensors.

    CSV, TSV, JSONL, Parquet ──tables──> columns of cells ──items──> Items, Links
    Items, Links ──splits──> train, validation, test ──pairing──> Pairs

Everything that can be wrong with a table is found here, before any work starts.
"""

from modalign.pairs.items import Items, OnError, Reads, Skipped, read_items
from modalign.pairs.pairing import Pairs, read_pairs
from modalign.pairs.splits import SPLITS, row_numbers, rows_of
from modalign.pairs.tables import SUPPORTED_ENDINGS, check_columns, read_columns

__all__ = [
    "SPLITS",
    "SUPPORTED_ENDINGS",
    "Items",
    "OnError",
    "Pairs",
    "Reads",
    "Skipped",
    "check_columns",
    "read_columns",
    "read_items",
    "read_pairs",
    "row_numbers",
    "rows_of",
]
