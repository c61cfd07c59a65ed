"""Decides where requests go and what nodes accept. Pure: time is an argument."""
