"""Shipped networks in every form they can leave the house in, and the record that all print one digest."""
