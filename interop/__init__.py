"""Other programs' weights: checkpoints read under whatever names, published ones, exports."""

from interop.exports import EXPORTS, export
from interop.published import PUBLISHED, download
from interop.reading import UNTOLD, from_pretrained, read

__all__ = ['EXPORTS', 'PUBLISHED', 'UNTOLD', 'download', 'export', 'from_pretrained', 'read']
