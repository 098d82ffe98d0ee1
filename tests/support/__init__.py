"""What the tests stand on: the leak check, private instances, a registry, test images and a CRI client."""
