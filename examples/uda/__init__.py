"""Every unsupervised domain adaptation benchmark of the paper, from one command."""
