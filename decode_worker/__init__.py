"""Decides what a decode node does: reserve, claim, fetch, batch, finish. Pure: time is an argument."""
