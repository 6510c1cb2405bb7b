"""What the library costs, beside its peers and the limits of the machine, measured in one run: `make bench`."""
