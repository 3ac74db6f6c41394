"""Verbs: parse, call the library, print. The only room that prints."""
