"""One batch whose samples use different adapters."""
