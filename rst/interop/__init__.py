"""Ways in from other formats and out to them; nothing here is imported before it is used."""
