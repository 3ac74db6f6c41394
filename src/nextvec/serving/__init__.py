"""Serving: sessions over HTTP, hybrid routing, and a canary that is judged by the requests themselves."""
