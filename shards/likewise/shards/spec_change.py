"""Which changes of a gallery's description its stored rows survive."""

from likewise.shards.protocols import ShardError
from likewise.shards.spec import GallerySpec


class SpecChange(ShardError, ValueError):
    """A description that rows already written do not fit."""


def check_change(old: GallerySpec, new: GallerySpec) -> None:
    """Refuse a description that the rows written under the old one do not fit.

    Raises:
        SpecChange: Naming what cannot be changed.
    """
    if new.name != old.name or new.gallery_id != old.gallery_id or new.spaces != old.spaces:
        raise SpecChange(f"name, identity and spaces of gallery {old.name!r} cannot be changed")
    types = {attribute.name: attribute.type for attribute in new.attributes}
    for attribute in old.attributes:
        if types.get(attribute.name) != attribute.type:
            raise SpecChange(f"attribute {attribute.name!r} can be neither removed nor given another type")
