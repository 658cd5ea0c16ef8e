"""The converter's parts, in the order in which convert.py uses them: a source, its network, the graph, the package."""
