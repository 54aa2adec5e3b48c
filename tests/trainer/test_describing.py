from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from service.domain import Float32s, ItemId, item_key
from service.settings import ItemsSettings, TextSettings, VectorSettings
from service.state.catalogue import CatalogueItem
from service.trainer.describing import Describer
from tests.model.encoders import WIDTH, write_encoder

CPU = torch.device("cpu")


IMAGE, AUDIO = VectorSettings(name="image", width=3), VectorSettings(name="audio", width=2)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_encoder(Path(tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module")
def describer(encoder: str) -> Describer:
    return Describer(ItemsSettings(text=TextSettings(encoder=encoder)), CPU)


def with_vectors(name: str, text: str = "", **vectors: list[float]) -> CatalogueItem:
    found = {source: np.array(numbers, np.float32) for source, numbers in vectors.items()}
    return replace(an_item(name, text), vectors=found)


def test_vectors_need_no_encoder_and_each_source_counts_alike() -> None:
    describer = Describer(ItemsSettings(vectors=(IMAGE, AUDIO)), CPU)
    found = describer.describe(
        [
            with_vectors("a", image=[0, 3, 4], audio=[1e-30, 0]),
            with_vectors("b", image=[3e30, 0, 4e30]),
            with_vectors("c"),
        ]
    )
    assert [(source.name, source.width) for source in found.sources] == [("image", 3), ("audio", 2)]
    wanted = np.array([[0, 0.6, 0.8, 1, 0], [0.6, 0, 0.8, 0, 0], [0, 0, 0, 0, 0]], np.float32)
    assert np.allclose(found.frozen, wanted, rtol=1e-6)
    assert (found.digests != 0).tolist() == [[True, True], [True, False], [False, False]]


def test_vectors_stand_beside_those_of_the_text(encoder: str, describer: Describer) -> None:
    both = Describer(ItemsSettings(text=TextSettings(encoder=encoder), vectors=(IMAGE,)), CPU)
    found = both.describe([with_vectors("a", "red shoe", image=[0, 0, 2])])
    alone = describer.describe([an_item("a", "red shoe")])
    np.testing.assert_array_equal(found.frozen, np.hstack([alone.frozen, [[0, 0, 1]]]))


def test_another_vector_is_another_digest_of_its_source_only() -> None:
    describer = Describer(ItemsSettings(vectors=(IMAGE, AUDIO)), CPU)
    one, other = describer.digests(
        [
            with_vectors("a", image=[1, 0, 0], audio=[1, 0]),
            with_vectors("a", image=[1, 0, 1], audio=[1, 0]),
        ]
    )
    assert (one == other).tolist() == [False, True]


def an_item(name: str, text: str) -> CatalogueItem:
    return CatalogueItem(item_key(ItemId(name)), ItemId(name), text)


def test_items_with_the_same_text_have_the_same_vector(describer: Describer) -> None:
    found = describer.describe(
        [an_item("a", "red shoe"), an_item("b", "green"), an_item("c", "red shoe")]
    )
    assert found.frozen.shape == (3, WIDTH)
    assert np.array_equal(found.frozen[0], found.frozen[2])
    assert not np.array_equal(found.frozen[0], found.frozen[1])
    assert found.digests[0] == found.digests[2] != found.digests[1]
    assert found.items[1] == (item_key(ItemId("b")), ItemId("b"))


def test_a_text_that_becomes_no_numbers_has_none(
    describer: Describer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One of them in a table would end all training, at each start again."""
    encoder = describer._encoder
    assert encoder is not None
    encode = encoder.encode

    def overflowing(texts: list[str]) -> Float32s:
        found: Float32s = encode(texts)
        found[["red" in one for one in texts]] = np.nan
        return found

    monkeypatch.setattr(encoder, "encode", overflowing)
    found = describer.describe([an_item("a", "red shoe"), an_item("b", "green")])
    assert not found.frozen[0].any()
    assert np.linalg.norm(found.frozen[1]) == pytest.approx(1.0, rel=1e-4)
    assert "gave no numbers for 1 texts" in caplog.text


def test_an_item_without_a_text_is_not_described(describer: Describer) -> None:
    found = describer.describe([an_item("a", "")])
    assert not found.frozen.any()
    assert not found.digests.any()


def test_the_source_names_the_encoder(describer: Describer) -> None:
    (source,) = describer.sources
    assert (source.name, source.width) == ("text", WIDTH)
    assert "encoder" in source.origin
