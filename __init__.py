"""FreePrune."""
