"""What a benchmark leaves behind: its numbers as JSON, and a page about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def publish(report: Mapping[str, Any], page: str, output: Path) -> None:
    """Write both beside each other (`output` has no ending), and print the page."""
    output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    output.with_suffix(".md").write_text(page)
    print(page)
