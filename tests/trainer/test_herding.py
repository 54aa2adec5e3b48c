import numpy as np

from service.trainer.herding import herd


def test_those_chosen_have_nearly_the_mean_of_all() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 4)).astype(np.float32) + 3.0
    mean = features.mean(axis=0)

    def gap(rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> float:
        return float(np.linalg.norm(features[rows].mean(axis=0) - mean))

    chosen = herd(features, 20)
    assert len(np.unique(chosen)) == 20
    at_random = [gap(random.choice(200, 20, replace=False)) for _ in range(50)]
    assert gap(chosen) < min(at_random)


def test_all_are_chosen_where_there_are_no_more() -> None:
    features = np.ones((3, 2), np.float32)
    assert herd(features, 5).tolist() == [0, 1, 2]
    assert herd(features[:0], 5).tolist() == []
