"""A release in Croissant 1.0 (mlcommons.org/croissant/1.0): files and columns of its configurations, as JSON-LD."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from curation.release.building import schemas
from curation.release.licences import licence_url

_SPEC = "http://mlcommons.org/croissant/1.0"
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def write_croissant(path: Path, manifest: Mapping[str, Any], data: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the description of a release.

    Args:
        path: Where.
        manifest: The release's, with its schemas, but its files may be missing.
        data: SHA-256 and size of each Parquet file, by its path in the release.
    """
    recipe = manifest["recipe"]
    of_slots = schemas(recipe["mix"]["slots"])
    urls = [licence_url(licence) or licence for licence in manifest["licences"]]
    described = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": manifest["name"],
        "description": f"{recipe['title']}: queries with a positive and graded hard negatives. Digest "
        f"{manifest['digest']}.",
        "conformsTo": _SPEC,
        "license": urls if len(urls) > 1 else urls[0],
        "version": manifest["version"],
        **({"inLanguage": list(recipe["language"])} if recipe["language"] else {}),
        "keywords": ["hard-negatives", "graded-negatives", "sentence-transformers", "synthetic"],
        "isLiveDataset": False,
        "distribution": [_file(name, one) for name, one in sorted(data.items())]
        + [_shards(config) for config in sorted(manifest["schemas"])],
        "recordSet": [_records(config, of_slots[config]) for config in sorted(manifest["schemas"])],
    }
    path.write_bytes(orjson.dumps(described, option=orjson.OPT_INDENT_2) + b"\n")


def _file(name: str, one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{one['bytes']} B",
        "encodingFormat": "application/x-parquet",
        "sha256": one["sha256"],
    }


def _shards(config: str) -> dict[str, Any]:
    # Contained in no file object: readers take that for an archive, and find nothing in a Parquet file.
    return {
        "@type": "cr:FileSet",
        "@id": f"{config}-files",
        "name": f"{config}-files",
        "description": f"All files of the configuration {config}.",
        "encodingFormat": "application/x-parquet",
        "includes": f"{config}/*.parquet",
    }


def _records(config: str, schema: pa.Schema) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": config,
        "name": config,
        "field": [_field(config, column) for column in schema],
    }


def _field(config: str, column: pa.Field) -> dict[str, Any]:
    source = {"fileSet": {"@id": f"{config}-files"}, "extract": {"column": column.name}}
    field: dict[str, Any] = {"@type": "cr:Field", "@id": f"{config}/{column.name}", "name": column.name}
    if not pa.types.is_list(column.type):
        return field | {"dataType": _data_type(column.type), "source": source}
    # Structs in a list: a reader takes each of their parts by its name. Croissant 1.0 has no nesting below that, so a
    # list inside them (a negative's scores) is named and not described.
    parts = [part for part in column.type.value_type if not pa.types.is_nested(part.type)]
    deeper = [part.name for part in column.type.value_type if pa.types.is_nested(part.type)]
    told = {"description": f"A list of structs; also in them: {', '.join(deeper)}."} if deeper else {}
    return field | told | {"subField": [_part(field["@id"], part, source) for part in parts]}


def _part(above: str, part: pa.Field, source: dict[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{above}/{part.name}",
        "name": part.name,
        "dataType": _data_type(part.type),
        "repeated": True,
        "source": source | {"transform": {"jsonPath": part.name}},
    }


def _data_type(kind: pa.DataType) -> str:
    if pa.types.is_floating(kind):
        return "sc:Float"
    return "sc:Integer" if pa.types.is_integer(kind) else "sc:Text"
