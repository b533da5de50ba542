"""How the models that come with the project are made and measured, and what they reach."""
