"""How providers are reached: dialing, TLS, proxies, and what carries an exchange."""
