"""Reading and editing of graphs, for all passes."""
