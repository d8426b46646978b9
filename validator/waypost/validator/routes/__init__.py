"""Which URL answers what? The hot path, and everything that Starlette serves."""
