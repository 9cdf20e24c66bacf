"""The checker of the rpcs that change models: each caller has a family of its own, of which it changes the version.

None of them is tried again by the SDK, so one that was cut off is in doubt. What was acknowledged holds, over restarts
too: the next round of the caller finds the version in use that its last one left.
"""

from pathlib import Path
from typing import Final

from tests.faults.checker import TIMEOUT_S, Caller, Checker
from tests.unit.server.model_fixtures import write_repository
from tests.unit.server.version_fixtures import other_words

from likewise.client import Client, FailedPrecondition

KINDS: Final = ("image", "text", "composer")
VERSIONS: Final = (1, 2)


def write_families(folder: Path, callers: int = 4) -> Path:
    """A model repository with a family for each caller, in two versions that read words differently, of one space."""
    for number in range(callers):
        write_repository(folder, family=_family(number))
        other_words(folder, 2, family=_family(number))
    return folder


def make_galleries(client: Client, callers: int = 4) -> None:
    """A gallery for each family, so that it is searched with what is in use."""
    for number in range(callers):
        gallery = client.create_gallery(_family(number), encoder=_family(number))
        gallery.upsert(["red", "small"], texts=["red", "small"])


class _Versions:
    """Changes versions and remembers what is in use.

    Attributes:
        known: Version in use by caller; None while one of its changes is in doubt.
    """

    def __init__(self) -> None:
        self.known: dict[int, int | None] = {}

    def check(self, caller: Caller) -> None:
        """Load, promote, search, roll back and unload."""
        client, family = caller.client, _family(caller.number)
        names = {f"{family}-{kind}" for kind in KINDS}
        now = _in_use(client, names)
        known = self.known.get(caller.number)
        assert known in (None, now), f"{family}/{known} was acknowledged, {now} is in use"
        other = VERSIONS[VERSIONS.index(now) - 1]
        for name in sorted(names):
            assert client.load_model(name, other, timeout=TIMEOUT_S).state == "ready"
        if not self._change(caller, other, names):
            return
        hits = client.gallery(family).search(text="red", k=1, timeout=TIMEOUT_S)
        assert {model.version for model in hits.models} == {other}, hits.models
        self.known[caller.number] = None
        client.rollback_model(f"{family}-text", timeout=TIMEOUT_S)
        self.known[caller.number] = now
        assert _in_use(client, names) == now
        # One that is cut off may free the version while the next round makes use of it.
        self.known[caller.number] = None
        for name in sorted(names):
            client.unload_model(name, other, timeout=TIMEOUT_S)
        self.known[caller.number] = now

    def _change(self, caller: Caller, version: int, names: set[str]) -> bool:
        """Promote a version; False if one that was in doubt came in between."""
        in_doubt = self.known.get(caller.number) is None
        self.known[caller.number] = None
        first, *others = sorted(names)
        try:
            promotion = caller.client.promote_model(
                first, version, together=dict.fromkeys(others, version), force=True, timeout=TIMEOUT_S
            )
        except FailedPrecondition:
            if in_doubt:
                return False
            raise
        self.known[caller.number] = version
        assert {model.name: model.version for model in promotion.models} == dict.fromkeys(names, version)
        return True


def _family(number: int) -> str:
    return f"family-{number}"


def _in_use(client: Client, names: set[str]) -> int:
    """The one version of all these models that is in use."""
    versions = {model.version for model in client.models(timeout=TIMEOUT_S) if model.in_use and model.name in names}
    assert len(versions) == 1, f"the models {sorted(names)} are in use in the versions {sorted(versions)}"
    return versions.pop()


def checkers() -> dict[str, Checker]:
    """By rpc; each call of this has a memory of its own."""
    return {"ModelService.List, Load, Promote, Rollback, Unload": _Versions().check}
