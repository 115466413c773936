"""What a run decided, as plain data: the schema of recipes, the files and versions that count."""
