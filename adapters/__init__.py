"""What an adapter is: format, manifest, base fingerprint, exact loading, templates, store, host cache."""
