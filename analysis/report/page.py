"""The HTML of a report: one file, to which a content security policy allows no request and no script but its own."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from deltaw.analysis.report.collect import Content
from deltaw.analysis.report.pack import pack

ASSETS = files("deltaw.analysis.report") / "assets"
# In the order in which they are joined: a file uses what stands above it, main.js begins.
SCRIPTS = (
    "dom.js", "format.js", "statistics.js", "unpack.js", "model.js", "state.js", "theme.js", "charts.js", "controls.js",
    "views/runs.js", "views/changes.js", "views/together.js", "views/where.js", "views/over.js", "views/spectrum.js",
    "views/geometry.js", "views/between.js", "views/log.js", "views/most.js", "views/claims.js", "views/foot.js",
    "main.js",
)  # fmt: skip
LIBRARY = "library/echarts.min.js"  # Apache ECharts 6.1.0, as its package on npm has it
LIBRARY_SHA256 = "b66b25aeb4df84e33199dc21694014d336d222cbd9deb0e5a7c14bd6aa0d0fd0"


def page(content: Content, *, watch: float | None = None) -> str:
    """Return the report as HTML.

    Arguments:
        content: What it shows.
        watch: After how many seconds the open page reads its file anew; ``None`` where it is written once.
    """
    columns, numbers = pack(content.columns)
    about = content.about | {
        "columns": columns,
        "watch": watch,
        "version": version("deltaw"),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    style, script, library = assets()
    return filled(
        (ASSETS / "template.html").read_text(encoding="utf-8"),
        {
            "policy": html.escape(policy([library, script], [style])),
            "version": html.escape(version("deltaw")),
            "style": style,
            "about": json_in_html(about),
            "numbers": numbers,
            "library": library,
            "script": script,
        },
    )


@cache
def assets() -> tuple[str, str, str]:
    """Return the style sheet, the joined script and the plotting library."""
    joined = "\n".join((ASSETS / "script" / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return (
        (ASSETS / "report.css").read_text(encoding="utf-8"),
        f'(() => {{\n"use strict";\n{joined}}})();',
        (ASSETS / LIBRARY).read_text(encoding="utf-8"),
    )


def policy(scripts: list[str], styles: list[str]) -> str:
    """Return the content security policy: these scripts and style sheets alone, told by their hashes, and no request.

    Example:
        >>> policy(["1"], [""])[:92]
        "default-src 'none'; script-src 'sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s='; style-"
    """
    allowed = {
        "default-src": "'none'",
        "script-src": " ".join(map(_digest, scripts)),
        "style-src": " ".join(map(_digest, styles)),
        "img-src": "data: blob:",
        "connect-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def json_in_html(value: Any) -> str:
    r"""Return a value as JSON that no HTML parser reads anything into: <, > and & are written as escapes, and so is
    everything that is not ASCII.

    Example:
        >>> json_in_html({"name": "</script>"})
        '{"name":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def filled(template: str, values: Mapping[str, str]) -> str:
    """Return a template with ``{{name}}`` replaced, in one pass: what is filled in is not looked at again.

    Example:
        >>> filled("{{a}} and {{b}}", {"a": "{{b}}", "b": "1"})
        '{{b}} and 1'
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
