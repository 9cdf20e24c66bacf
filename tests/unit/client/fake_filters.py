"""The meaning of filters, as far as these tests need it."""

from collections.abc import Callable, Mapping
from typing import Any

from likewise.v1 import common_pb2


def matches(node: common_pb2.Filter, attributes: Mapping[str, Any]) -> bool:
    """Whether attributes pass a filter; the part of its meaning that these tests need."""
    kind = node.WhichOneof("node")
    if kind == "all_of":
        return all(matches(part, attributes) for part in node.all_of.filters)
    if kind == "any_of":
        return any(matches(part, attributes) for part in node.any_of.filters)
    if kind == "negation":
        return not matches(node.negation, attributes)
    if kind == "existence":
        return attributes.get(node.existence.attribute) is not None
    if kind == "membership":
        return attributes.get(node.membership.attribute) in [_plain(value) for value in node.membership.values]
    value = attributes.get(node.comparison.attribute)
    return value is not None and _OPERATORS[node.comparison.operator](value, _plain(node.comparison.value))


_OPERATORS: dict[int, Callable[[Any, Any], bool]] = {
    common_pb2.COMPARISON_OPERATOR_EQUAL: lambda left, right: bool(left == right),
    common_pb2.COMPARISON_OPERATOR_LESS: lambda left, right: bool(left < right),
    common_pb2.COMPARISON_OPERATOR_GREATER_OR_EQUAL: lambda left, right: bool(left >= right),
}


def _plain(value: common_pb2.Value) -> Any:
    return getattr(value, value.WhichOneof("kind") or "string_value")
