"""Holds the networks beside `model.UNet`. Each is called in the same way: model(x, t, y) -> out."""
