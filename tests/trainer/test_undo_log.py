"""Rows as they were before they changed."""

import torch

from service.trainer.undo_log import UndoLog


def test_rows_come_back_as_they_were_before_they_first_changed() -> None:
    table, steps = torch.arange(12.0).view(6, 2), torch.zeros(6)
    tensors = (table, steps)
    before = [tensor.clone() for tensor in tensors]
    log = UndoLog(6, torch.device("cpu"))
    for _ in range(2):
        for changed in ([4, 1], [1, 5]):
            rows = torch.tensor(changed)
            log.keep(rows, tensors)
            for tensor in tensors:
                tensor[rows] += 1.0
        assert log.rows.tolist() == [4, 1, 5]
        log.put_back(tensors)
        assert all(map(torch.equal, tensors, before))


def test_what_never_changed_is_not_kept() -> None:
    log = UndoLog(3, torch.device("cpu"))
    table = torch.ones(3, 1)
    table[2] = 7.0  # behind the log's back
    log.put_back((table,))
    assert log.rows.tolist() == []
    assert table[2] == 7.0
