"""The CRI at the door: gRPC in, `pods/` and `images/` behind. The only place of grpc and protobuf."""
