"""The whole flow on one machine: keys, manifest, servers, requests, and a table of what came."""
