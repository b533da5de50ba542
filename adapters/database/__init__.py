"""The relational state: who there is, what is theirs, what became of it. The bytes of adapters are not in it."""
