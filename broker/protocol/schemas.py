"""JSON Schemas of what travels as JSON, for agents in other languages.

`python -m broker.protocol.schemas FOLDER` writes them.

They say which fields there are and what each may hold. What JSON Schema can't say (that strides fill a shape,
that an offset follows the tensor before it) is in `WIRE.md` and in the code that decodes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from broker.protocol.messages import AnyMessage
from spliteasy.graph.document import Document
from spliteasy.job.package import Manifest
from spliteasy.job.spec import JobSpec
from spliteasy.privacy.ends import Ends

DIALECT = "https://json-schema.org/draft/2020-12/schema"
RECORDS: Mapping[str, tuple[Any, str]] = {
    "message": (AnyMessage, "The field `m` of an envelope's header: one message."),
    "graph": (Document, "A segment of a job (`head.json`, `body.json`, `tail.json`): graphs and tables."),
    "spec": (JobSpec, "A job's settings, as `submit` writes them into the manifest."),
    "manifest": (Manifest, "A job's manifest: its parts by digest, its inputs and targets."),
    "ends": (Ends, "The part `ends.json` of a job: the law of initial weights that devices draw."),
}


class _WithoutTensors(GenerateJsonSchema):
    """Tensors are beside the JSON, so that a message's `values` are no field of it."""

    def is_instance_schema(self, schema: core_schema.IsInstanceSchema) -> JsonSchemaValue:
        return {"not": {}}


def schemas() -> dict[str, bytes]:
    """The text of each schema, by the name of its file."""
    found = {}
    for name, (record, description) in RECORDS.items():
        schema = TypeAdapter(record).json_schema(schema_generator=_WithoutTensors, mode="validation")
        for part in schema.get("$defs", {}).values():
            fields = part.get("properties", {})
            fields.pop("values", None)
            if "kind" in fields:  # it has a default in Python, and always travels
                part["required"] = sorted({"kind", *part.get("required", ())})
        told = {"$schema": DIALECT, "description": description, **schema}
        found[f"{name}.json"] = orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"
    return found


def main() -> None:
    """Write them into the folder that the command names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m broker.protocol.schemas FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in schemas().items():
        (folder / name).write_bytes(text)
        print(folder / name)


if __name__ == "__main__":
    main()
