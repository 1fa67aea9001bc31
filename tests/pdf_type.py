"""How large the type of a PDF page is."""

from __future__ import annotations

from typing import Any

import numpy as np


def type_sizes(page: Any) -> list[float]:
    """The size of every text that a PDF page shows, in points on the page."""
    found: list[float] = []

    def visit(text: str, cm: Any, tm: Any, _font: Any, size: float) -> None:
        if text.strip():
            a, b = np.array(tm[:4]).reshape(2, 2), np.array(cm[:4]).reshape(2, 2)
            found.append(size * float(np.sqrt(abs(np.linalg.det(a @ b)))))

    page.extract_text(visitor_text=visit)
    return found
