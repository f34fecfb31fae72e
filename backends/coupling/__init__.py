"""Groups of coupled channels, the certificate, and sizes that follow them."""
