"""Define the networks other than `model.UNet`. Each is called in the same way: model(x, t, y) -> out."""
