"""Which layer of a QDQ file hurts, why, and what to try; files of other tools, too."""
