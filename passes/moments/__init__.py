"""Mean and spread of values from BatchNormalization alone, without data."""
