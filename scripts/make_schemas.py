"""Write docs/schemas/ from the models of `service.domain`: what stands on the topics."""

import json
from pathlib import Path

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode

from service.domain import CatalogueRecord, ErasureRecord, Event, Recommendation

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schemas"

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, str]:
    """File names and what they hold. An event may be incomplete where a default fills it in."""
    return {
        "erasure.schema.json": _text(ErasureRecord, "validation"),
        "event.schema.json": _text(Event, "validation"),
        "item.schema.json": _text(CatalogueRecord, "validation"),
        "recommendation.schema.json": _text(Recommendation, "serialization"),
    }


def _text(model: type[BaseModel], mode: JsonSchemaMode) -> str:
    schema = model.model_json_schema(mode=mode)
    return json.dumps({"$schema": DIALECT, **schema}, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in schemas().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
