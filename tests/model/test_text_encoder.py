from pathlib import Path

import numpy as np
import pytest
import torch

from service.errors import ConfigurationError
from service.model.text_encoder import TextEncoder
from service.settings import TextSettings
from tests.model.encoders import WIDTH, write_encoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    name = write_encoder(tmp_path_factory.mktemp("encoder"))
    return TextEncoder(name, TextSettings(max_tokens=8, batch_items=2), CPU)


def test_a_text_gives_the_same_vector_alone_and_padded_beside_longer_ones(
    encoder: TextEncoder,
) -> None:
    texts = ["red shoe and the green shirt", "red", "green shirt", "the red shoe"]
    together = encoder.encode(texts)
    assert together.shape == (4, WIDTH)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, rtol=1e-5)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(encoder.encode([text])[0], vector, atol=1e-5)
    assert not np.allclose(together[1], together[2], atol=0.01)


def test_what_is_beyond_the_longest_text_is_not_read(encoder: TextEncoder) -> None:
    start = " ".join(["red", "shoe"] * 4)
    assert np.array_equal(encoder.encode([start]), encoder.encode([start + " green green"]))


def test_no_more_is_read_than_the_model_has_places_for(tmp_path: Path) -> None:
    encoder = TextEncoder(write_encoder(tmp_path), TextSettings(max_tokens=1024), CPU)
    whole = " ".join(["red", "shoe"] * 16)  # as many as there are
    assert np.array_equal(encoder.encode([whole]), encoder.encode([f"{whole} green"]))


def test_no_texts_give_no_vectors(encoder: TextEncoder) -> None:
    assert encoder.encode([]).shape == (0, WIDTH)


@pytest.mark.parametrize("spoilt", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_is_no_encoder_is_one_line(tmp_path: Path, spoilt: str) -> None:
    name = write_encoder(tmp_path)
    (tmp_path / spoilt).unlink()
    with pytest.raises(ConfigurationError, match=r"items\.text\.encoder") as raised:
        TextEncoder(name, TextSettings(), CPU)
    assert "\n" not in str(raised.value)
