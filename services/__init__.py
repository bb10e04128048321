"""The serving platform: Ray Serve deployments that speak `ferret.v1`, and the client that talks to them."""
