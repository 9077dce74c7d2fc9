"""Other programs' weights: checkpoints read under whatever names, published ones, exports."""

from interop.weights import EXPORTS, PUBLISHED, UNTOLD, download, export, from_pretrained, read

__all__ = ['EXPORTS', 'PUBLISHED', 'UNTOLD', 'download', 'export', 'from_pretrained', 'read']
