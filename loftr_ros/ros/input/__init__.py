"""Input: subscriptions, pairing by stamp, and a count for every image."""
