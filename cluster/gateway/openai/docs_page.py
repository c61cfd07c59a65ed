"""GET /docs: the interface as one page of HTML, made from its own description, with nothing fetched from elsewhere."""

from html import escape

Json = dict[str, object]

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em; }
pre { padding: 0.75rem; overflow-x: auto; border: 1px solid #8886; border-radius: 6px; }
h2 { margin-top: 2.5rem; } h2 code { font-size: 1em; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; vertical-align: top;
padding: 0.3rem 0.6rem; border-bottom: 1px solid #8884; } th { font-weight: 600; }
"""


def docs_page(document: Json, example: str) -> str:
    """The page. `example`: a command to paste."""
    info = _object(document["info"])
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'><link rel='icon' href='data:,'>",
        f"<title>{escape(str(info['title']))} API</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(str(info['title']))} {escape(str(info['version']))}</h1>{_prose(str(info['description']))}",
        "<p>The same as data: <a href='openapi.json'><code>openapi.json</code></a>.</p>",
        f"<pre>{escape(example)}</pre>",
    ]
    for path, methods in _object(document["paths"]).items():
        for method, operation in _object(methods).items():
            parts.append(_operation(document, method, path, _object(operation)))
    return "\n".join([*parts, "</body></html>"])


def _operation(document: Json, method: str, path: str, operation: Json) -> str:
    parts = [
        f"<h2><code>{method.upper()} {escape(path)}</code></h2>",
        f"<p><b>{escape(str(operation.get('summary', '')))}.</b></p>{_prose(str(operation.get('description', '')))}",
    ]
    content = _object(_object(operation.get("requestBody", {})).get("content", {}))
    for kind in content.values():
        parts.append(_fields(_resolved(document, _object(_object(kind).get("schema", {})))))
    statuses = "; ".join(
        f"<b>{escape(status)}</b> {escape(str(_object(told).get('description', '')))}"
        for status, told in _object(operation.get("responses", {})).items()
    )
    return "\n".join([*parts, f"<p>{statuses}</p>"])


def _fields(schema: Json) -> str:
    required = schema.get("required", [])
    assert isinstance(required, list), "a schema has a list here"
    rows = [
        f"<tr><td><code>{escape(name)}</code>{' *' if name in required else ''}</td>"
        f"<td>{escape(_kind(_object(told)))}</td><td>{escape(str(_object(told).get('description', '')))}</td></tr>"
        for name, told in _object(schema.get("properties", {})).items()
    ]
    return f"<table><tr><th>field</th><th>type</th><th></th></tr>{''.join(rows)}</table>" if rows else ""


def _kind(schema: Json) -> str:
    """A type in a word or two; null is not said, for every optional field may be null."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema and isinstance(schema["enum"], list):
        return ", ".join(str(each) for each in schema["enum"])
    options = schema.get("anyOf")
    if isinstance(options, list):
        kinds = dict.fromkeys(_kind(_object(each)) for each in options if _object(each).get("type") != "null")
        return " or ".join(kinds)
    if schema.get("type") == "array":
        return f"list of {_kind(_object(schema.get('items', {})))}"
    return str(schema.get("type", "any"))


def _resolved(document: Json, schema: Json) -> Json:
    if "$ref" not in schema:
        return schema
    name = str(schema["$ref"]).rpartition("/")[2]
    return _object(_object(_object(document["components"])["schemas"])[name])


def _prose(text: str) -> str:
    paragraphs = (escape(each).split("`") for each in text.split("\n\n") if each)
    return "".join(f"<p>{_coded(pieces)}</p>" for pieces in paragraphs)


def _coded(pieces: list[str]) -> str:
    return "".join(f"<code>{each}</code>" if place % 2 else each for place, each in enumerate(pieces))


def _object(value: object) -> Json:
    assert isinstance(value, dict), "OpenAPI has an object here"
    return value
