from service.domain import ItemId, item_key
from service.state.catalogue import Catalogue, CatalogueItem


def an_item(name: str, *, available: bool) -> CatalogueItem:
    return CatalogueItem(item_key(ItemId(name)), ItemId(name), available=available)


def test_the_last_word_on_an_item_counts() -> None:
    catalogue = Catalogue()
    catalogue.learn([an_item("a", available=False), an_item("b", available=False)])
    catalogue.learn([an_item("a", available=True), an_item("c", available=True)])
    assert catalogue.withdrawn.tolist() == [item_key(ItemId("b"))]
    catalogue.learn([an_item("b", available=True), an_item("b", available=False)])
    assert catalogue.withdrawn.tolist() == [item_key(ItemId("b"))]


def test_who_holds_on_to_what_is_withdrawn_sees_it_as_it_was() -> None:
    catalogue = Catalogue()
    catalogue.learn([an_item("a", available=False)])
    held = catalogue.withdrawn
    catalogue.learn([an_item("b", available=False), an_item("a", available=True)])
    assert held.tolist() == [item_key(ItemId("a"))]
