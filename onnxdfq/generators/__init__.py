"""Networks that make images, trained against the float network, and what is trained on them."""
