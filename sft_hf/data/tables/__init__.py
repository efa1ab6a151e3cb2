"""Reading tables: encodings, quoting, JSON, workbooks, archives."""
