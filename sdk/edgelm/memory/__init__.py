"""Keys and values computed so far, and the memory that they and the weights lie in."""
