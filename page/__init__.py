"""Make the page that demo.py serves: a diffusion to walk through, to compare and to draw figures of."""
