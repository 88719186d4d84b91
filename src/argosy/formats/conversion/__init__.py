"""Models from one format to another: formats are nodes, converters edges, and every conversion is proved."""
