import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.domain import Bools, Int64s
from service.model.vocabulary import NO_ROW
from service.trainer.packing import BLOTTED, Packed, pack
from tests.trainer.examples import CPU

LENGTH = 6
# An item, unknown where 0, and whether it is a target.
SEQUENCES = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=LENGTH), max_size=12
)
WIDTHS = st.integers(LENGTH - 1, 2 * LENGTH)
Sequence = list[tuple[int, int]]  # items as they are read, each with its label


def padded(sequences: list[list[tuple[int, bool]]]) -> tuple[Int64s, Bools]:
    rows = np.zeros((len(sequences), LENGTH), np.int64)
    target = np.zeros((len(sequences), LENGTH), np.bool_)
    for i, sequence in enumerate(sequences):
        for j, (item, wanted) in enumerate(sequence):
            rows[i, j], target[i, j] = item, wanted
    return rows, target


def taught(sequence: list[tuple[int, bool]]) -> Sequence:
    """What has to be made of a sequence of which something is to be foretold."""
    known = [(item, wanted) for item, wanted in sequence if item != NO_ROW]
    items = [item for item, _ in known]
    labels = [item if wanted else NO_ROW for item, wanted in known[1:]]
    return list(zip(items, labels, strict=False)) if any(labels) else []


def read(batch: Packed) -> list[list[Sequence]]:
    """The sequences in each row, told apart by their positions."""
    rows = []
    for cells in torch.stack([batch.item, batch.position, batch.label], dim=2).tolist():
        found: list[Sequence] = []
        after = 0  # the position that would go on with the last sequence
        for item, position, label in cells:
            if item == NO_ROW:
                assert (position, label) == (0, NO_ROW)
                after = -1
                continue
            if position == 0:
                found.append([])
            else:
                assert position == after
            found[-1].append((item, label))
            after = position + 1
        rows.append(found)
    return rows


@given(SEQUENCES, WIDTHS, st.booleans())
def test_every_target_is_foretold_once_from_all_that_is_known_before_it(
    sequences: list[list[tuple[int, bool]]], width: int, together: bool
) -> None:
    batch = pack(*padded(sequences), width, CPU, together=together)
    assert batch.item.shape[1] <= width
    found = [sequence for row in read(batch) for sequence in row]
    assert sorted(found) == sorted(filter(None, map(taught, sequences)))


@given(SEQUENCES, WIDTHS)
def test_apart_each_has_a_row_to_itself_in_order(
    sequences: list[list[tuple[int, bool]]], width: int
) -> None:
    batch = pack(*padded(sequences), width, CPU, together=False)
    assert read(batch) == [[one] for one in map(taught, sequences) if one]


def test_nothing_to_foretell_gives_no_row() -> None:
    rows, target = padded([[(1, True), (2, False)], [(0, False), (3, True)], []])
    for together in (True, False):
        assert len(pack(rows, target, LENGTH, CPU, together=together).item) == 0


def test_many_short_sequences_leave_little_of_the_rows_empty() -> None:
    lengths = np.random.default_rng(0).geometric(0.2, 500).clip(2, 51)
    rows = (np.arange(51) < lengths[:, None]).astype(np.int64)  # [sequences, length]
    together = pack(rows, rows > 0, 50, CPU, together=True)
    apart = pack(rows, rows > 0, 50, CPU, together=False)
    assert (together.item != NO_ROW).double().mean() > 0.9
    assert (apart.item != NO_ROW).double().mean() < 0.2


def test_the_last_sequences_are_marked_as_replayed_wherever_they_end_up() -> None:
    rows = np.array(
        [[1, 2, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0], [4, 5, 6, 7, 0, 0], [8, 9, 0, 0, 0, 0]]
    )
    for together in (False, True):
        batch = pack(rows, rows != 0, 8, CPU, together=together, replayed=2)
        assert set(batch.item[batch.replayed].tolist()) == {4, 5, 6, 8}
        assert set(batch.item[~batch.replayed].tolist()) <= {0, 1}


def test_weights_stand_beside_their_labels_and_are_left_out_where_all_are_one() -> None:
    rows = np.array([[1, 2, 3, 0], [0, 4, 5, 6]])
    target = np.array([[0, 1, 1, 0], [0, 0, 0, 1]], np.bool_)
    weight = np.array([[9, 2, 3, 9], [9, 9, 9, -4]], np.float32)
    for together in (False, True):
        batch = pack(rows, target, 8, CPU, together=together, weight=weight)
        assert batch.weight is not None
        wanted = batch.label != NO_ROW
        found = zip(batch.label[wanted].tolist(), batch.weight[wanted].tolist(), strict=True)
        assert set(found) == {(2, 2.0), (3, 3.0), (6, -4.0)}
    even = np.where(target, 1.0, 9.0).astype(np.float32)
    assert pack(rows, target, 8, CPU, together=True, weight=even).weight is None


def test_what_is_blotted_out_keeps_its_place_without_an_item() -> None:
    rows, target = np.array([[7, BLOTTED, 0, 8, 9, 0]]), np.array([[0, 0, 0, 0, 1, 0]], np.bool_)
    batch = pack(rows, target, LENGTH, CPU, together=True)
    assert batch.item.tolist() == [[7, NO_ROW, 8]]
    assert batch.position.tolist() == [[0, 1, 2]]
    assert batch.label.tolist() == [[NO_ROW, NO_ROW, 9]]
