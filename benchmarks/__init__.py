"""What things cost, for us and for Node's hypercore 10 and 11, measured in one run: `make bench`."""
