"""Reports for people and scripts: what a model holds, what a target makes of it, which methods and targets exist."""
