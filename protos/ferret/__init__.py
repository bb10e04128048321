"""The wire contract. `ferret.v1` is generated from the `.proto` files beside it by `make protos`."""
