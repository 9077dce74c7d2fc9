"""Exchanges weights with other programs: reads their checkpoints and published ones, and writes exports for them."""

# ruff: noqa: F401 (what is imported here is what this package offers)

from interop.exports import EXPORTS, check_export, export
from interop.published import PUBLISHED, download
from interop.reading import UNTOLD, from_pretrained, read
