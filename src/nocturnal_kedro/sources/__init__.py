"""One module per dataset: raw tables in, canonical readings out.

A source module offers `TITLE` (citation and licence), `Options` (a frozen pydantic model that
rejects unknown keys) and `read(root, options) -> Readings`. The folder is the list of sources.
"""
