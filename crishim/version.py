"""The project's version: the one place that states it (pyproject.toml repeats it; a test compares them)."""

VERSION = "0.1.0"
RUNTIME_NAME = "crishim"
CRI_VERSION = "v1"
