"""The SDK: search galleries of a Likewise server."""

from likewise.client import errors, hits, results
from likewise.client.aio import AsyncClient
from likewise.client.aio_gallery import AsyncGallery
from likewise.client.errors import *  # noqa: F403 - every error is API, named by errors.__all__
from likewise.client.filter_text import parse_filter
from likewise.client.filters import F, Filter
from likewise.client.galleries import GalleryInfo, IndexSpec
from likewise.client.gallery_stats import GalleryStats, RecallEstimate, ShardStats
from likewise.client.hits import *  # noqa: F403 - every result is API, named by hits.__all__
from likewise.client.items import Item, Items
from likewise.client.models import Health, Model, Promotion
from likewise.client.references import Condition, Examples, Reference
from likewise.client.requests import Query
from likewise.client.results import *  # noqa: F403 - every result is API, named by results.__all__
from likewise.client.snapshots import Export, Snapshot
from likewise.client.sync import Client
from likewise.client.sync_gallery import Gallery
from likewise.client.upserts import UpsertResult
from likewise.client.versions import VersionToken

__all__ = ["AsyncClient", "AsyncGallery", "Client", "Condition", "Examples", "F", "Filter"]
__all__ += ["Gallery", "GalleryInfo", "GalleryStats", "Health", "IndexSpec", "Item", "Items", "Model"]
__all__ += ["Promotion", "Query", "Reference", "ShardStats", "UpsertResult", "VersionToken", "parse_filter"]
__all__ += ["Export", "RecallEstimate", "Snapshot"]
__all__ += errors.__all__ + hits.__all__ + results.__all__
