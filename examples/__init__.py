"""Data written for the demo and the tests, with the script that makes it."""
