"""A report as one HTML file: no network, no fonts, no library; what it holds of a model's names is escaped."""
