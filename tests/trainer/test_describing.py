from pathlib import Path

import numpy as np
import pytest
import torch

from service.domain import ItemId, item_key
from service.settings import ItemsSettings, TextSettings
from service.state.catalogue import CatalogueItem
from service.trainer.describing import Describer
from tests.model.encoders import WIDTH, write_encoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def describer(tmp_path_factory: pytest.TempPathFactory) -> Describer:
    name = write_encoder(Path(tmp_path_factory.mktemp("encoder")))
    return Describer(ItemsSettings(text=TextSettings(encoder=name)), CPU)


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


def test_an_item_without_a_text_is_not_described(describer: Describer) -> None:
    found = describer.describe([an_item("a", "")])
    assert not found.frozen.any()
    assert not found.digests.any()


def test_the_source_names_the_encoder(describer: Describer) -> None:
    (source,) = describer.sources
    assert (source.name, source.width) == ("text", WIDTH)
    assert "encoder" in source.origin
