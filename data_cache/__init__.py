"""Keep features: the file format, its identity, and every check that it can be trusted."""
