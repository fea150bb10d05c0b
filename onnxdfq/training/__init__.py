"""Networks that train: the student, its loop and its losses."""
