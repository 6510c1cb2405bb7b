"""What the library costs, compared with its peers and the limits of the machine, measured in one run: `make bench`."""
