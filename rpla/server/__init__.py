"""Front ends that serve other programs."""
