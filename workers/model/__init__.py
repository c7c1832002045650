"""One model: how it is opened, inspected, cut into ranges of layers, and loaded."""
