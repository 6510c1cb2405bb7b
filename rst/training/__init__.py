"""The method: remember w0, select after every step."""
