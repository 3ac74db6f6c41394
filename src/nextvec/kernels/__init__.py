"""Compiled matrix products, searches and recurrent steps, with torch in their place where nothing was compiled."""
