"""The forms of recent searches, checked once: callers send the same one again, with another reference each time.

Checking a form takes ten times as long as finding it here, most of all where it has a filter.
"""

from collections import OrderedDict
from typing import Final

from likewise.server.validate_search import SearchForm, form_key, search_form
from likewise.shards.protocols import SearchOptions
from likewise.shards.spec import GallerySpec
from likewise.v1 import search_service_pb2 as pb

MAX_FORMS: Final = 1_024
MAX_FORM_BYTES: Final = 4_096
"""Larger ones, with long filters, are checked each time, so that the forms kept stay within a few MiB."""


class Form:
    """A checked form and the options that shards are given for it.

    Args:
        form: It.
        spec: The gallery it was checked against.
    """

    def __init__(self, form: SearchForm, spec: GallerySpec) -> None:
        self.spec = spec
        self.k = form.k
        self.cut = form.cut
        self.looking = form.looking
        self.partial = form.partial
        self.include_reference = form.include_reference
        self._form = form
        self._options: dict[str, SearchOptions] = {}

    def options(self, space: str) -> SearchOptions:
        """What shards are told when nothing is left out and no version waited for; the same object each time."""
        options = self._options.get(space)
        if options is None:
            form = self._form
            options = self._options[space] = SearchOptions(
                space=space,
                k=form.k,
                filter=form.filter,
                exact=form.looking.exact,
                ef=form.looking.ef,
                nprobe=form.looking.nprobe,
                over_fetch=form.looking.over_fetch,
                target_recall=form.looking.target_recall,
                attributes=form.attributes,
                vectors=form.vectors,
            )
        return options


class Forms:
    """The forms last used, of all galleries. For one event loop."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], Form] = OrderedDict()

    def of(self, request: pb.SearchRequest, spec: GallerySpec) -> Form:
        """The form of a search of the gallery `spec`.

        Raises:
            InvalidRequest: As `search_form`, each time anew: what is wrong is never kept.
            Unimplemented: For parts of a later release.
        """
        key = (spec.gallery_id, *form_key(request))
        form = self._kept.get(key)
        # A gallery may have got attributes or another index since; its description is another object then.
        if form is not None and form.spec is spec:
            self._kept.move_to_end(key)
            return form
        form = Form(search_form(request, spec), spec)
        if sum(len(part) for part in key if isinstance(part, bytes)) <= MAX_FORM_BYTES:
            self._kept[key] = form
            if len(self._kept) > MAX_FORMS:
                self._kept.popitem(last=False)
        return form
