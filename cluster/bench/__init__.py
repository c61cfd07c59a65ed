"""`penstock bench`: measurements whose arms run in one command, alternated, beside the bars of the same machine."""
