"""Pure converters between protobuf messages and the records of `pods/` and `images/`."""
