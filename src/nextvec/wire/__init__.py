"""What the server and the client exchange over HTTP: every request, answer and problem body, declared once.

The server encodes and checks bodies with these types, the client decodes answers into them, and ``/openapi.json`` is
generated from them. Nothing here knows a model, a server or a connection.
"""
