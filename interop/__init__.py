"""Exchanges weights with other programs: reads their checkpoints and published ones, and writes exports for them."""

from interop.exports import EXPORTS, export
from interop.published import PUBLISHED, download
from interop.reading import UNTOLD, from_pretrained, read

__all__ = ['EXPORTS', 'PUBLISHED', 'UNTOLD', 'download', 'export', 'from_pretrained', 'read']
