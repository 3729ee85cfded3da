"""Chat models behind one contract, and the strings that name them."""
