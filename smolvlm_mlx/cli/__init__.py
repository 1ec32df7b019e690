"""What people touch. May import anything; nothing imports it."""
