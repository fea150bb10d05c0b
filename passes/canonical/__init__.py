"""One form for what exporters write in many, and BatchNormalization folded."""
