"""Files and folders that are written atomically, and readers for untrusted files."""
