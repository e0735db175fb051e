"""A hostile guest: random operations of every kind against a real domain. See __main__.py."""
