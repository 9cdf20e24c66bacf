"""The checksum of a file by pieces."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likewise.shards.checksum import DIGEST_BYTES, PIECE_BYTES, Checksum, of_file

DATA = bytes(range(251)) * (5 * PIECE_BYTES // 2 // 251)  # two pieces and a half; 251 divides no piece


def checksum(*parts: bytes) -> bytes:
    total = Checksum()
    for part in parts:
        total.update(part)
    return total.digest()


def of_bytes(data: bytes, folder: Path) -> bytes:
    path = folder / "file"
    path.write_bytes(data + b"what follows")
    with path.open("rb") as file:
        return of_file(file.fileno(), len(data))


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES, len(DATA)])
def test_what_is_read_in_threads_has_the_checksum_of_what_was_written(size: int, tmp_path: Path) -> None:
    assert of_bytes(DATA[:size], tmp_path) == checksum(DATA[:size])
    assert len(checksum(DATA[:size])) == DIGEST_BYTES


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=5).map(sorted))
def test_a_checksum_does_not_depend_on_the_cuts(cuts: list[int]) -> None:
    bounds = [0, *cuts, len(DATA)]

    assert checksum(*(DATA[a:b] for a, b in itertools.pairwise(bounds))) == checksum(DATA)


@settings(max_examples=30, deadline=None)
@given(at=st.integers(0, len(DATA) - 1), bit=st.integers(0, 7))
def test_one_bit_makes_another_checksum(at: int, bit: int) -> None:
    damaged = bytearray(DATA)
    damaged[at] ^= 1 << bit

    assert checksum(bytes(damaged)) != checksum(DATA)


def test_exchanged_pieces_make_another_checksum() -> None:
    exchanged = DATA[PIECE_BYTES : 2 * PIECE_BYTES] + DATA[:PIECE_BYTES] + DATA[2 * PIECE_BYTES :]

    assert checksum(exchanged) != checksum(DATA)


def test_a_file_that_ends_before_has_none(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"short")

    with path.open("rb") as file, pytest.raises(OSError, match="the file ends within the 6 bytes from 0 on"):
        of_file(file.fileno(), 6)
