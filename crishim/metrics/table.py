"""The table of metrics for the documentation: `python -m crishim.metrics.table` prints it."""

import sys

from crishim.metrics import catalog


def markdown() -> str:
    """Return a Markdown table of every metric: name, type, labels, meaning."""
    rows = ["| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    for spec in catalog.ALL:
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        rows.append(f"| `{spec.name}` | {spec.kind.value} | {labels} | {spec.help} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
