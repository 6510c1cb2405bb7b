"""Import from and export to other formats; nothing here is imported before it is used."""
