"""Networks and data as users give them: loading, checking, unwrapping."""
