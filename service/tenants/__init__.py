"""Who may do what: tenants, their keys, what was granted to them."""
