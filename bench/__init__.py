"""Compare our speed with that of the programs that people would otherwise use: python -m bench."""
