"""`python -m tests.mutation` changes the code in small ways and counts how many of them the tests notice."""
