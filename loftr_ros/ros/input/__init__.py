"""What comes in: subscriptions, pairing by stamps, accounting for every image."""
