"""The table of all data sets, and the configuration that selects one.

Each data set is one file that defines a subclass of `DataSetConfig`. To register it, import the
class here and add it to `AnyData`.
"""

from typing import Annotated, get_args

from pydantic import Field

from associative_transformer.data.batches import DataSet, HeldOut, Share, Split
from associative_transformer.data.config import DataSetConfig, DescribedItem, InputSize
from associative_transformer.data.images import ImagesConfig
from associative_transformer.data.listing import list_image_files
from associative_transformer.data.sort_of_clevr import SortOfClevrConfig
from associative_transformer.data.sources import SplitsConfig
from associative_transformer.data.stored import HUB_DATA_SETS
from associative_transformer.data.triangle import TriangleConfig
from associative_transformer.decoding import decode_image

__all__ = [
    "DATA_SETS",
    "HUB_DATA_SETS",
    "DataConfig",
    "DataSet",
    "DataSetConfig",
    "DescribedItem",
    "HeldOut",
    "ImagesConfig",
    "InputSize",
    "Share",
    "SortOfClevrConfig",
    "Split",
    "SplitsConfig",
    "TriangleConfig",
    "decode_image",
    "list_image_files",
]

AnyData = TriangleConfig | SortOfClevrConfig | ImagesConfig
DataConfig = Annotated[AnyData, Field(discriminator="kind")]

DATA_SETS: tuple[type[AnyData], ...] = get_args(AnyData)
"""The configurations of all data sets."""
