"""What is told about models and runs."""
