"""A release in Croissant 1.0 (mlcommons.org/croissant/1.0): files and columns of its configurations, as JSON-LD."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

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
_TYPES = {"string": "sc:Text", "float": "sc:Float", "double": "sc:Float"}


def write_croissant(path: Path, manifest: Mapping[str, Any], data: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the description of a release.

    Args:
        path: Where.
        manifest: The release's, with its schemas, but its files may be missing.
        data: SHA-256 and size of each Parquet file, by its path in the release.
    """
    recipe = manifest["recipe"]
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
        "inLanguage": list(recipe["language"]),
        "keywords": ["hard-negatives", "graded-negatives", "sentence-transformers", "synthetic"],
        "isLiveDataset": False,
        "distribution": [_file(name, one) for name, one in sorted(data.items())]
        + [_shards(config) for config in sorted(manifest["schemas"])],
        "recordSet": [_records(config, columns) for config, columns in sorted(manifest["schemas"].items())],
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


def _records(config: str, columns: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": config,
        "name": config,
        "field": [_field(config, column["name"], column["type"]) for column in columns],
    }


def _field(config: str, name: str, kind: str) -> dict[str, Any]:
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{config}/{name}",
        "name": name,
        "source": {"fileSet": {"@id": f"{config}-files"}, "extract": {"column": name}},
    }
    if kind.startswith("list<"):
        # Structs in a list: Croissant 1.0 has no nesting below sub-fields, so their parts are named by the Arrow type.
        return field | {"repeated": True, "dataType": "sc:Text", "description": f"A list of structs, in Arrow: {kind}"}
    return field | {"dataType": _TYPES.get(kind, "sc:Integer")}
