"""How does a process come up? Stores are opened, the parts joined, the port served."""
