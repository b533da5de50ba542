"""What is measured: Tenora, called directly and over HTTP, and its rivals."""
