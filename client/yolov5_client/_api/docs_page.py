"""The OpenAPI document as a page that loads nothing from anywhere.

Swagger UI needs 1.9 MB of script, and inline styles that the Content-Security-Policy refuses; this
needs no script at all.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --ground: #f4f6f8; --card: #fff; --text: #16202a;
  --quiet: #51606d; --line: #d5dce3; --accent: #0b5f99; }
@media (prefers-color-scheme: dark) { :root { --ground: #11161b; --card: #1a2127; --text: #e6ecf1;
  --quiet: #a6b6c3; --line: #333f49; --accent: #6cc0f5; } }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--ground);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }
a { color: var(--accent); }
section { margin: 1rem 0; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; }
h1 { font-size: 1.5rem; } h2 { margin: 0 0 .5rem; font-size: 1.15rem; overflow-wrap: anywhere; }
h3 { margin: 1rem 0 .3rem; font-size: 1rem; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .5rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
pre { overflow: auto; padding: .7rem; border: 1px solid var(--line); border-radius: .4rem;
  font-size: .85rem; }
.method { color: var(--accent); } .quiet { color: var(--quiet); }
"""

_EXAMPLES = {
    "/detect": (
        "curl -F image=@photo.jpg http://127.0.0.1:8080/detect",
        "curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg'"
        " 'http://127.0.0.1:8080/detect?conf_thres=0.4'",
    ),
    "/detect.jpg": ("curl -F image=@photo.jpg http://127.0.0.1:8080/detect.jpg -o drawn.jpg",),
    "/v1/vision/detection": (
        "curl -F image=@photo.jpg -F min_confidence=0.6 http://127.0.0.1:8080/v1/vision/detection",
    ),
}


def render(document: dict[str, Any]) -> str:
    """Return the page, HTML.

    Args:
        document: an OpenAPI document.
    """
    operations = [
        _operation(path, method, operation, document)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [_schema(*one) for one in document["components"]["schemas"].items()]
    info = document["info"]
    text = "".join(f"<p>{_prose(part)}</p>" for part in info["description"].split("\n\n"))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(info["title"])}: REST</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{_text(info["title"])} <span class="quiet">{_text(info["version"])}</span></h1>
{text}
<p><a href="openapi.json">OpenAPI document</a>, for generating clients · <a href="./">Try it</a></p>
</header>
<main>
{"".join(operations)}
<h2>Schemas</h2>
{"".join(schemas)}
</main>
</body>
</html>
"""


def _operation(path: str, method: str, operation: dict[str, Any], document: dict[str, Any]) -> str:
    parts = [f'<h2><span class="method">{method.upper()}</span> <code>{_text(path)}</code></h2>']
    described = _prose(operation.get("description", ""))
    parts.append(f"<p>{_text(operation['summary'])}. {described}</p>")
    parts += [
        f'<pre tabindex="0"><code>{_text(one)}</code></pre>' for one in _EXAMPLES.get(path, ())
    ]
    if given := operation.get("parameters"):
        rows = [_parameter(_resolve(one, document)) for one in given]
        bodies = operation.get("requestBody", {}).get("content", {})
        where = "query, in the form or in the JSON" if "application/json" in bodies else "address"
        parts.append(_table(f"Parameters, in the {where}", rows))
    if body := operation.get("requestBody"):
        rows = [
            (f"<code>{_text(kind)}</code>", _kind(content["schema"]))
            for kind, content in body["content"].items()
        ]
        parts.append(_table("Body", rows))
    rows = []
    for status, answer in operation["responses"].items():
        found = _resolve(answer, document)
        kinds = ", ".join(f"<code>{_text(kind)}</code>" for kind in found["content"])
        rows.append((_text(status), f"{_prose(found['description'])} {kinds}"))
    parts.append(_table("Answers", rows))
    return f"<section>{''.join(parts)}</section>\n"


def _parameter(parameter: dict[str, Any]) -> tuple[str, str]:
    limits = {k: v for k, v in parameter["schema"].items() if k in ("minimum", "maximum")}
    allowed = f" {limits['minimum']} to {limits['maximum']}." if limits else ""
    return f"<code>{_text(parameter['name'])}</code>", _prose(parameter["description"]) + allowed


def _schema(name: str, schema: dict[str, Any]) -> str:
    shown = _text(json.dumps(schema, indent=1))
    return (
        f'<section id="{_text(name)}"><h3>{_text(name)}</h3>'
        f'<pre tabindex="0"><code>{shown}</code></pre></section>\n'
    )


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = _text(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "image" in schema.get("properties", {}):
        return "field <code>image</code>, once or several times, and the parameters"
    return "the image"


def _resolve(one: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in one:
        return one
    found: Any = document
    for step in one["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    resolved: dict[str, Any] = found
    return resolved


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><th scope='row'>{name}</th><td>{text}</td></tr>" for name, text in rows)
    return f"<h3>{_text(title)}</h3><table>{lines}</table>"


def _prose(text: str) -> str:
    """Return text with its code between backticks, as Markdown has it."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", _text(text))


def _text(text: str) -> str:
    return html.escape(text, quote=True)
