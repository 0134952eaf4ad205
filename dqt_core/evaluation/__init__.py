"""What a run costs and what it finds: counting, choosing widths, looking twice."""
