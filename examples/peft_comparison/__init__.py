"""Table VII and Figure 4: ways to tune an encoder for a domain, by accuracy and by what each task has to store."""
