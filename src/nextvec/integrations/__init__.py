"""Adapters to other packages, one module for each. Nothing else of nextvec imports them, and each needs its package.

``pip install 'nextvec[integrations]'`` installs all of these packages.
"""
