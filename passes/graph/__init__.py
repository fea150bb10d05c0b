"""What every pass needs to read and edit a graph."""
