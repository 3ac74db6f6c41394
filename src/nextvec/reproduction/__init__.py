"""The predecessor's programme, made again: its phases and its experts. Nothing else in nextvec imports this package."""
